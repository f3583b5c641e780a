// The functions of kinograph.h: no exception leaves one.

#include <cmath>
#include <new>
#include <string>

#include "failure.h"
#include "kinograph.h"
#include "pipeline.h"
#include "request.h"

using kinograph::Failure;

namespace {

thread_local std::string last_words;

kinograph_status failed(kinograph_status status, const char *words) noexcept {
    try {
        last_words = words;
    } catch (const std::bad_alloc &) {
        last_words.clear();
    }
    return status;
}

template <typename Call>
kinograph_status guarded(Call call) noexcept {
    try {
        call();
        return KINOGRAPH_OK;
    } catch (const Failure &failure) {
        return failed(failure.status, failure.what());
    } catch (const std::bad_alloc &) {
        return failed(KINOGRAPH_MEMORY, "this program is out of memory");
    } catch (const std::exception &error) {
        return failed(KINOGRAPH_INTERNAL, error.what());
    } catch (...) {
        return failed(KINOGRAPH_INTERNAL, "an exception of an unknown kind");
    }
}

/// What must not be NULL.
template <typename... Pointers>
void need(const Pointers *...pointers) {
    if (((pointers == nullptr) || ...)) throw Failure(KINOGRAPH_USAGE, "an argument is NULL that must not be");
}

kinograph_status set(kinograph_request *request, const char *field, nlohmann::json value) noexcept {
    return guarded([&] {
        need(request, field);
        request->fields[field] = std::move(value);
    });
}

}  // namespace

const char *kinograph_error(void) {
    return last_words.c_str();
}

const char *kinograph_version(void) {
    return KINOGRAPH_VERSION;
}

kinograph_status kinograph_open(const kinograph_options *options, kinograph_pipeline **pipeline) {
    if (pipeline) *pipeline = nullptr;
    return guarded([&] {
        need(pipeline);
        *pipeline = new kinograph_pipeline(options ? *options : kinograph_options{});
    });
}

void kinograph_close(kinograph_pipeline *pipeline) {
    delete pipeline;
}

const char *kinograph_about(const kinograph_pipeline *pipeline) {
    return pipeline ? pipeline->about.c_str() : nullptr;
}

kinograph_request *kinograph_request_new(const char *prompt) {
    kinograph_request *request = nullptr;
    const kinograph_status status = guarded([&] {
        need(prompt);
        request = new kinograph_request;
        request->fields["prompt"] = prompt;
    });
    if (status == KINOGRAPH_OK) return request;
    delete request;
    return nullptr;
}

void kinograph_request_free(kinograph_request *request) {
    delete request;
}

kinograph_status kinograph_request_set_text(kinograph_request *request, const char *field, const char *value) {
    return guarded([&] {
        need(request, field, value);
        request->fields[field] = value;
    });
}

kinograph_status kinograph_request_set_integer(kinograph_request *request, const char *field, uint64_t value) {
    return set(request, field, value);
}

kinograph_status kinograph_request_set_number(kinograph_request *request, const char *field, double value) {
    return guarded([&] {
        need(request, field);
        if (!std::isfinite(value)) throw Failure(KINOGRAPH_REQUEST, std::string(field) + " is not a finite number");
        request->fields[field] = value;
    });
}

kinograph_status kinograph_request_set_flag(kinograph_request *request, const char *field, int value) {
    return set(request, field, value != 0);
}

kinograph_status kinograph_request_add_cue(kinograph_request *request, double seconds, const char *prompt) {
    return guarded([&] {
        need(request, prompt);
        request->fields["cues"].push_back({{"start", seconds}, {"prompt", prompt}});
    });
}

kinograph_status kinograph_request_add_picture(kinograph_request *request, const kinograph_pictures *picture,
                                               int64_t frame) {
    return guarded([&] {
        need(request, picture);
        if (picture->count != 1)
            throw Failure(KINOGRAPH_USAGE, "a picture is one, use kinograph_request_set_film for more");
        kinograph::Attachment taken = kinograph::attachment("images", picture);
        taken.words["at"] = frame;
        request->attachments.push_back(std::move(taken));
    });
}

kinograph_status kinograph_request_set_film(kinograph_request *request, const char *field,
                                            const kinograph_pictures *film) {
    return guarded([&] {
        need(request, field, film);
        kinograph::Attachment taken = kinograph::attachment(field, film);
        for (kinograph::Attachment &other : request->attachments) {
            if (other.words["field"] == field) {
                other = std::move(taken);
                return;
            }
        }
        request->attachments.push_back(std::move(taken));
    });
}

kinograph_status kinograph_request_set_output(kinograph_request *request, const char *path, int replace) {
    return guarded([&] {
        need(request, path);
        request->output = path;
        request->replace = replace != 0;
    });
}

kinograph_status kinograph_generate(kinograph_pipeline *pipeline, const kinograph_request *request,
                                    const kinograph_callbacks *callbacks) {
    return guarded([&] {
        need(pipeline, request);
        pipeline->generate(*request, callbacks ? *callbacks : kinograph_callbacks{});
    });
}

const char *kinograph_report(const kinograph_pipeline *pipeline) {
    return pipeline && !pipeline->report.empty() ? pipeline->report.c_str() : nullptr;
}

void kinograph_cancel(kinograph_pipeline *pipeline) {
    guarded([&] {
        need(pipeline);
        pipeline->cancel();
    });
}
