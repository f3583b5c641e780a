#pragma once

#include <stdexcept>
#include <string>

#include "kinograph.h"

namespace kinograph {

/// Why a call fails, as it is told.
class Failure : public std::runtime_error {
public:
    Failure(kinograph_status why, const std::string &words) : std::runtime_error(words), status(why) {}
    const kinograph_status status;
};

}  // namespace kinograph
