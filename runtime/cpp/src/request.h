#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kinograph.h"

namespace kinograph {

/// Pictures that are handed over, and the message's words for them.
struct Attachment {
    nlohmann::json words;
    std::vector<std::uint8_t> pixels;
};

/// Takes the pictures in. Throws Failure where they are none.
Attachment attachment(const char *field, const kinograph_pictures *pictures);

}  // namespace kinograph

/// What is asked for, as far as it has been said: the message to come, and the pixels after it.
struct kinograph_request {
    nlohmann::json fields = nlohmann::json::object();
    std::vector<kinograph::Attachment> attachments;
    std::string output;
    bool replace = false;
};
