#pragma once

#include <sys/types.h>

#include <chrono>
#include <mutex>
#include <string>
#include <vector>

namespace kinograph {

/// A process whose standard input and output are one socket, the other end of which is ours.
///
/// It is in a process group of its own, so that a terminal's Ctrl-C is its starter's alone to answer.
class Process {
public:
    /// Starts `arguments[0]`, which is looked for in PATH where it has no slash. Throws Failure.
    explicit Process(const std::vector<std::string> &arguments);

    /// Ends it: it is told by the end of its input, after two seconds by SIGTERM, and after five more by SIGKILL.
    ~Process();

    Process(const Process &) = delete;
    Process &operator=(const Process &) = delete;

    /// All of it. Throws Failure where nobody reads any more.
    void write(const void *data, std::size_t size);

    /// Up to `size` bytes, and 0 when it has closed its end.
    std::size_t read(void *data, std::size_t size);

    /// How it ended, in words. Waits for that for a moment, after its end of the socket was closed.
    std::string end();

private:
    bool wait(std::chrono::milliseconds most);

    int socket_ = -1;
    std::mutex mutex_;  // of what follows
    pid_t pid_ = -1;
    bool running_ = false;
    int status_ = -1;  // as waitpid has it; -1 where somebody else has waited for it
};

}  // namespace kinograph
