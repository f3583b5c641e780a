#include "process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "failure.h"

extern char **environ;

namespace kinograph {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kGlance{5};
constexpr milliseconds kUntilTerm{2000};
constexpr milliseconds kUntilKill{5000};

[[noreturn]] void fail(const std::string &what, int error) {
    throw Failure(KINOGRAPH_ENGINE, what + ": " + std::strerror(error));
}

/// What a process is started with, freed however that ends.
struct Spawn {
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    Spawn() {
        posix_spawn_file_actions_init(&files);
        posix_spawnattr_init(&attributes);
    }
    ~Spawn() {
        posix_spawn_file_actions_destroy(&files);
        posix_spawnattr_destroy(&attributes);
    }
    Spawn(const Spawn &) = delete;
    Spawn &operator=(const Spawn &) = delete;
};

}  // namespace

Process::Process(const std::vector<std::string> &arguments) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) fail("no socket can be had", errno);
    std::vector<char *> argv;
    for (const std::string &argument : arguments) argv.push_back(const_cast<char *>(argument.c_str()));
    argv.push_back(nullptr);

    Spawn spawn;
    posix_spawn_file_actions_adddup2(&spawn.files, ends[1], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&spawn.files, ends[1], STDOUT_FILENO);
    sigset_t none, usual;  // whatever its starter blocks or ignores, it ends when it is told to
    sigemptyset(&none);
    sigemptyset(&usual);
    for (const int number : {SIGINT, SIGTERM, SIGPIPE, SIGALRM, SIGCHLD}) sigaddset(&usual, number);
    posix_spawnattr_setsigmask(&spawn.attributes, &none);
    posix_spawnattr_setsigdefault(&spawn.attributes, &usual);
    posix_spawnattr_setpgroup(&spawn.attributes, 0);
    posix_spawnattr_setflags(&spawn.attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    const int error = posix_spawnp(&pid_, argv[0], &spawn.files, &spawn.attributes, argv.data(), environ);
    close(ends[1]);
    if (error != 0) {
        close(ends[0]);
        throw Failure(KINOGRAPH_USAGE, "'" + arguments[0] + "' cannot be started: " + std::strerror(error) +
                                           ". Install Kinograph (pip install kinograph), or give the command's path");
    }
    socket_ = ends[0];
    running_ = true;
}

Process::~Process() {
    close(socket_);
    if (wait(kUntilTerm)) return;
    kill(pid_, SIGTERM);
    if (wait(kUntilKill)) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
}

void Process::write(const void *data, std::size_t size) {
    const char *rest = static_cast<const char *>(data);
    while (size > 0) {
        const ssize_t written = send(socket_, rest, size, MSG_NOSIGNAL);
        if (written < 0) {
            if (errno == EINTR) continue;
            throw Failure(KINOGRAPH_ENGINE, end());
        }
        rest += written;
        size -= static_cast<std::size_t>(written);
    }
}

std::size_t Process::read(void *data, std::size_t size) {
    for (;;) {
        const ssize_t count = recv(socket_, data, size, 0);
        if (count >= 0) return static_cast<std::size_t>(count);
        if (errno == ECONNRESET) return 0;
        if (errno != EINTR) fail("the process of Kinograph cannot be heard", errno);
    }
}

std::string Process::end() {
    std::string how = "is not heard of any more";
    if (wait(kUntilTerm)) {
        if (status_ != -1 && WIFEXITED(status_)) how = "ended with exit code " + std::to_string(WEXITSTATUS(status_));
        if (status_ != -1 && WIFSIGNALED(status_)) {
            how = "ended by signal " + std::to_string(WTERMSIG(status_));
            if (WTERMSIG(status_) == SIGKILL) how += ", which is what the system sends where memory runs out";
        }
    }
    return "the process of Kinograph " + how +
           ". What it said is on standard error; close this pipeline and open another";
}

/// Whether it has ended, after at `most` so long.
bool Process::wait(milliseconds most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto until = std::chrono::steady_clock::now() + most;
    while (running_) {
        const pid_t ended = waitpid(pid_, &status_, WNOHANG);
        if (ended == pid_) {
            running_ = false;
        } else if (ended < 0 && errno == ECHILD) {  // whoever waits for every child has been here
            running_ = false;
            status_ = -1;
        } else if (std::chrono::steady_clock::now() >= until) {
            break;
        } else {
            std::this_thread::sleep_for(kGlance);
        }
    }
    return !running_;
}

}  // namespace kinograph
