#include "pipeline.h"

#include "failure.h"

using kinograph::Failure;
using kinograph::Message;
using nlohmann::json;

namespace {

constexpr int kProtocol = 1;  // of `kinograph serve`
constexpr std::size_t kMaxLine = 1u << 22;
constexpr std::size_t kChunk = 1u << 18;
constexpr std::uint32_t kMaxSide = 1u << 14;
constexpr std::uint32_t kMaxCount = 1u << 20;

[[noreturn]] void misread(const std::string &why) {
    throw Failure(KINOGRAPH_ENGINE, "the process of Kinograph said what is no message (" + why +
                                        "). Close this pipeline, and see that library and command are of one version");
}

std::vector<std::string> command_line(const kinograph_options &options) {
    std::vector<std::string> words{options.command ? options.command : "kinograph", "serve"};
    if (options.device) words.insert(words.end(), {"--device", options.device});
    if (options.variant) words.insert(words.end(), {"--variant", options.variant});
    if (options.weight_budget) {
        words.insert(words.end(), {"--weight-budget", std::to_string(options.weight_budget)});
    }
    if (options.no_cuda_graph) words.push_back("--no-cuda-graph");
    for (const char *const *lora = options.loras; lora && *lora; ++lora) words.insert(words.end(), {"--lora", *lora});
    for (const char *const *lora = options.loras_2; lora && *lora; ++lora) words.insert(words.end(), {"--lora-2", *lora});
    if (options.bundle) words.insert(words.end(), {"--", options.bundle});
    return words;
}

/// What an error that the process told of is here.
Failure told(const Message &message) {
    const int code = message.fields.at("code").get<int>();
    const bool known = (code >= KINOGRAPH_INTERNAL && code <= KINOGRAPH_NUMERIC) || code == KINOGRAPH_CANCELLED;
    return Failure(known ? static_cast<kinograph_status>(code) : KINOGRAPH_INTERNAL,
                   message.fields.at("message").get<std::string>());
}

kinograph_pictures pictures(const Message &message) {
    kinograph_pictures found{};
    found.pixels = message.bytes.data();
    found.count = message.fields.at("count").get<std::uint32_t>();
    found.height = message.fields.at("height").get<std::uint32_t>();
    found.width = message.fields.at("width").get<std::uint32_t>();
    const bool possible = found.count <= kMaxCount && found.height <= kMaxSide && found.width <= kMaxSide;
    if (!possible || std::size_t{3} * found.count * found.height * found.width != message.bytes.size()) {
        misread("pictures of another size than their bytes");
    }
    return found;
}

/// What a callback makes of a message: anything but 0 cancels.
int tell(const Message &message, const kinograph_callbacks &to) {
    const json &fields = message.fields;
    if (message.type == "frames" && to.frames) {
        const kinograph_frames frames{pictures(message), fields.at("first").get<std::uint64_t>(),
                                      fields.at("total").get<std::uint64_t>()};
        return to.frames(to.user, &frames);
    }
    if (message.type == "preview" && to.preview) {
        const kinograph_pictures shown = pictures(message);
        return to.preview(to.user, &shown, fields.at("step").get<std::uint64_t>(),
                          fields.at("steps").get<std::uint64_t>());
    }
    if (message.type == "warning" && to.warning) {
        return to.warning(to.user, fields.at("message").get_ref<const std::string &>().c_str());
    }
    if (message.type == "stage" && to.progress && fields.contains("done")) {
        const json &total = fields.at("total");
        return to.progress(to.user, fields.at("stage").get_ref<const std::string &>().c_str(),
                           fields.at("done").get<double>(), total.is_null() ? -1.0 : total.get<double>(),
                           fields.at("unit").get_ref<const std::string &>().c_str());
    }
    return 0;  // and whatever a later version has to say
}

}  // namespace

namespace kinograph {

Message Inbox::next() {
    std::size_t end = begin_;
    while (true) {
        while (end < read_.size() && read_[end] != '\n') ++end;
        if (end < read_.size()) break;
        if (end - begin_ > kMaxLine) misread("a line without an end");
        end -= begin_;  // `more` moves what was not taken to the front
        more();
    }
    Message message;
    try {
        message.fields = json::parse(read_.begin() + static_cast<std::ptrdiff_t>(begin_),
                                     read_.begin() + static_cast<std::ptrdiff_t>(end));
        message.type = message.fields.at("type").get<std::string>();
        begin_ = end + 1;
        const std::size_t size = message.fields.value("bytes", std::size_t{0});
        message.bytes.reserve(size);
        while (message.bytes.size() < size) {
            if (begin_ == read_.size()) more();
            const std::size_t part = std::min(size - message.bytes.size(), read_.size() - begin_);
            const auto from = read_.begin() + static_cast<std::ptrdiff_t>(begin_);
            message.bytes.insert(message.bytes.end(), from, from + static_cast<std::ptrdiff_t>(part));
            begin_ += part;
        }
    } catch (const json::exception &error) {
        misread(error.what());
    } catch (const std::length_error &) {
        misread("more bytes than there can be");
    }
    return message;
}

void Inbox::more() {
    read_.erase(read_.begin(), read_.begin() + static_cast<std::ptrdiff_t>(begin_));
    begin_ = 0;
    const std::size_t before = read_.size();
    read_.resize(before + kChunk);
    const std::size_t count = process_.read(read_.data() + before, kChunk);
    read_.resize(before + count);
    if (count == 0) throw Failure(KINOGRAPH_ENGINE, process_.end());
}

}  // namespace kinograph

kinograph_pipeline::kinograph_pipeline(const kinograph_options &options)
    : process_(command_line(options)), inbox_(process_) {
    kinograph_callbacks callbacks{};
    callbacks.progress = options.progress;
    callbacks.user = options.user;
    try {
        Message message = inbox_.next();
        for (; message.type == "stage" || message.type == "warning"; message = inbox_.next()) {
            if (tell(message, callbacks) != 0) throw Failure(KINOGRAPH_CANCELLED, "given up by a callback");
        }
        if (message.type == "error") throw told(message);
        if (message.type != "ready") misread("a " + message.type + " before it is ready");
        if (const int spoken = message.fields.at("protocol").get<int>(); spoken != kProtocol) {
            throw Failure(KINOGRAPH_USAGE, "the command speaks protocol " + std::to_string(spoken) + ", this library " +
                                               std::to_string(kProtocol) + ". Install both of one version");
        }
        message.fields.erase("type");
        about = message.fields.dump();
    } catch (const json::exception &error) {
        misread(error.what());
    }
}

void kinograph_pipeline::generate(const kinograph_request &request, const kinograph_callbacks &callbacks) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (made_) {
            throw Failure(KINOGRAPH_USAGE, "this pipeline is already making a video. Wait for it, or open another one");
        }
        if (lost_) throw Failure(KINOGRAPH_ENGINE, process_.end());
        report.clear();
        ask(request, callbacks);
        made_ = true;
    }
    try {
        answer(callbacks);
    } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        made_ = false;
        throw;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    made_ = false;
}

void kinograph_pipeline::ask(const kinograph_request &request, const kinograph_callbacks &callbacks) {
    json message = {{"type", "generate"}, {"request", request.fields}};
    message["frames"] = callbacks.frames != nullptr;
    message["previews"] = callbacks.preview != nullptr;
    if (!request.output.empty()) {
        message["output"] = request.output;
        message["force"] = request.replace;
    }
    for (const kinograph::Attachment &one : request.attachments) message["attachments"].push_back(one.words);
    std::string line;
    try {
        line = message.dump() + "\n";
    } catch (const json::exception &) {
        throw Failure(KINOGRAPH_REQUEST, "the request has text that is not UTF-8. Convert it first");
    }
    lost_ = true;  // until the answer has been heard to its end
    process_.write(line.data(), line.size());
    for (const kinograph::Attachment &one : request.attachments) process_.write(one.pixels.data(), one.pixels.size());
}

void kinograph_pipeline::answer(const kinograph_callbacks &callbacks) {
    bool cancelled = false;
    try {
        for (;;) {
            Message message = inbox_.next();
            if (message.type == "done" || message.type == "error") {
                lost_ = false;
                if (cancelled) throw Failure(KINOGRAPH_CANCELLED, "cancelled by a callback");
                if (message.type == "error") throw told(message);
                message.fields.erase("type");
                report = message.fields.dump();
                return;
            }
            if (!cancelled && tell(message, callbacks) != 0) {
                cancelled = true;
                cancel();
            }
        }
    } catch (const json::exception &error) {
        misread(error.what());
    }
}

void kinograph_pipeline::cancel() {
    static constexpr char kCancel[] = "{\"type\":\"cancel\"}\n";
    const std::lock_guard<std::mutex> lock(mutex_);
    if (made_) process_.write(kCancel, sizeof kCancel - 1);
}
