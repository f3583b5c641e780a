#pragma once

#include <cstdint>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kinograph.h"
#include "process.h"
#include "request.h"

namespace kinograph {

/// What the process says: an object, and the bytes that follow it.
struct Message {
    std::string type;
    nlohmann::json fields;
    std::vector<std::uint8_t> bytes;
};

/// The messages that come from a process.
class Inbox {
public:
    explicit Inbox(Process &process) : process_(process) {}

    /// The next message. Throws Failure where there is none, or it is not one.
    Message next();

private:
    void more();

    Process &process_;
    std::vector<char> read_;
    std::size_t begin_ = 0;
};

}  // namespace kinograph

/// A process that serves, and what it has said of itself.
struct kinograph_pipeline {
    explicit kinograph_pipeline(const kinograph_options &options);

    void generate(const kinograph_request &request, const kinograph_callbacks &callbacks);
    void cancel();

    std::string about;
    std::string report;  // empty where there is none

private:
    void ask(const kinograph_request &request, const kinograph_callbacks &callbacks);
    void answer(const kinograph_callbacks &callbacks);

    kinograph::Process process_;
    kinograph::Inbox inbox_;
    std::mutex mutex_;   // of what is sent, and of `made`
    bool made_ = false;  // a video is being made
    bool lost_ = false;  // what comes next cannot be told any more
};
