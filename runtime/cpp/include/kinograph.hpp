// Kinograph for C++: kinograph.h with destructors, exceptions and std::function. Header only, C++17.
#ifndef KINOGRAPH_HPP
#define KINOGRAPH_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kinograph.h"

namespace kinograph {

/// What a call failed with. `what()` says what happened, what was expected and what to do.
class Error : public std::runtime_error {
public:
    explicit Error(kinograph_status status) : std::runtime_error(kinograph_error()), status_(status) {}
    kinograph_status status() const noexcept { return status_; }

private:
    kinograph_status status_;
};

namespace detail {
inline void check(kinograph_status status) {
    if (status != KINOGRAPH_OK) throw Error(status);
}
}  // namespace detail

using Pictures = kinograph_pictures;
using Frames = kinograph_frames;

/// What is asked for. Its fields are those of `kinograph.Request`.
class Request {
public:
    explicit Request(const std::string &prompt) : request_(kinograph_request_new(prompt.c_str())) {
        if (!request_) throw std::bad_alloc();
    }

    Request &set(const char *field, const std::string &value) {
        return checked(kinograph_request_set_text(get(), field, value.c_str()));
    }
    Request &set(const char *field, const char *value) {
        return checked(kinograph_request_set_text(get(), field, value));
    }
    template <typename Number, std::enable_if_t<std::is_arithmetic_v<Number>, int> = 0>
    Request &set(const char *field, Number value) {
        if constexpr (std::is_same_v<Number, bool>) {
            return checked(kinograph_request_set_flag(get(), field, value));
        } else if constexpr (std::is_floating_point_v<Number>) {
            return checked(kinograph_request_set_number(get(), field, value));
        } else {
            if (value < 0) throw std::invalid_argument(std::string(field) + " is negative");
            return checked(kinograph_request_set_integer(get(), field, static_cast<std::uint64_t>(value)));
        }
    }
    Request &add_cue(double seconds, const std::string &prompt) {
        return checked(kinograph_request_add_cue(get(), seconds, prompt.c_str()));
    }
    Request &add_picture(const Pictures &picture, std::int64_t frame = 0) {
        return checked(kinograph_request_add_picture(get(), &picture, frame));
    }
    Request &set_film(const char *field, const Pictures &film) {
        return checked(kinograph_request_set_film(get(), field, &film));
    }
    Request &set_output(const std::string &path, bool replace = false) {
        return checked(kinograph_request_set_output(get(), path.c_str(), replace));
    }

    kinograph_request *get() const noexcept { return request_.get(); }

private:
    Request &checked(kinograph_status status) {
        detail::check(status);
        return *this;
    }

    struct Free {
        void operator()(kinograph_request *request) const noexcept { kinograph_request_free(request); }
    };
    std::unique_ptr<kinograph_request, Free> request_;
};

/// `done` of `total` in `unit`, as in kinograph.h.
using Progress = std::function<void(const char *stage, double done, double total, const char *unit)>;

/// What is called while a video is made. One that throws ends the video, and `generate` throws that again.
struct Callbacks {
    std::function<void(const Frames &)> frames;
    Progress progress;
    std::function<void(const Pictures &, std::uint64_t step, std::uint64_t steps)> preview;
    std::function<void(const char *message)> warning;
};

/// A bundle that stays open. Everything but `cancel` is for one thread at a time.
class Pipeline {
public:
    explicit Pipeline(const kinograph_options &options = {}) {
        kinograph_pipeline *opened = nullptr;
        detail::check(kinograph_open(&options, &opened));
        pipeline_.reset(opened);
    }

    /// Tells how far the bundle is verified. A `progress` that throws gives up, and that is thrown again.
    Pipeline(kinograph_options options, const Progress &progress) {
        const Callbacks callbacks{{}, progress, {}, {}};
        Run run{callbacks, nullptr};
        options.user = &run;
        options.progress = progress ? told : nullptr;
        kinograph_pipeline *opened = nullptr;
        const kinograph_status status = kinograph_open(&options, &opened);
        if (run.thrown) std::rethrow_exception(run.thrown);
        detail::check(status);
        pipeline_.reset(opened);
    }

    void generate(const Request &request, const Callbacks &callbacks = {}) {
        Run run{callbacks, nullptr};
        kinograph_callbacks c{};
        c.user = &run;
        if (callbacks.frames) {
            c.frames = [](void *user, const kinograph_frames *frames) {
                return guarded(user, [&](const Callbacks &to) { to.frames(*frames); });
            };
        }
        if (callbacks.progress) {
            c.progress = told;
        }
        if (callbacks.preview) {
            c.preview = [](void *user, const kinograph_pictures *pictures, uint64_t step, uint64_t steps) {
                return guarded(user, [&](const Callbacks &to) { to.preview(*pictures, step, steps); });
            };
        }
        if (callbacks.warning) {
            c.warning = [](void *user, const char *message) {
                return guarded(user, [&](const Callbacks &to) { to.warning(message); });
            };
        }
        const kinograph_status status = kinograph_generate(pipeline_.get(), request.get(), &c);
        if (run.thrown) std::rethrow_exception(run.thrown);
        detail::check(status);
    }

    void cancel() noexcept { kinograph_cancel(pipeline_.get()); }

    /// JSON, as in kinograph.h.
    std::string about() const { return kinograph_about(pipeline_.get()); }
    std::string report() const {
        const char *report = kinograph_report(pipeline_.get());
        return report ? report : "";
    }

private:
    struct Run {
        const Callbacks &callbacks;
        std::exception_ptr thrown;
    };

    template <typename Call>
    static int guarded(void *user, Call call) noexcept {
        Run &run = *static_cast<Run *>(user);
        try {
            call(run.callbacks);
            return 0;
        } catch (...) {
            run.thrown = std::current_exception();
            return 1;
        }
    }

    static int told(void *user, const char *stage, double done, double total, const char *unit) noexcept {
        return guarded(user, [&](const Callbacks &to) { to.progress(stage, done, total, unit); });
    }

    struct Close {
        void operator()(kinograph_pipeline *pipeline) const noexcept { kinograph_close(pipeline); }
    };
    std::unique_ptr<kinograph_pipeline, Close> pipeline_;
};

}  // namespace kinograph

#endif
