#include "request.h"

#include "failure.h"

namespace kinograph {
namespace {

constexpr std::uint32_t kMaxSide = 8192;
constexpr std::uint32_t kMaxCount = 1u << 20;

}  // namespace

Attachment attachment(const char *field, const kinograph_pictures *pictures) {
    if (!field || !pictures || !pictures->pixels)
        throw Failure(KINOGRAPH_USAGE, "pictures and their field are needed, got NULL");
    const std::uint32_t count = pictures->count, height = pictures->height, width = pictures->width;
    if (!count || !height || !width || count > kMaxCount || height > kMaxSide || width > kMaxSide) {
        throw Failure(KINOGRAPH_REQUEST, "the pictures for " + std::string(field) + " are " + std::to_string(count) +
                                             " of " + std::to_string(width) + "x" + std::to_string(height) +
                                             " pixels: expected 1 to 1048576, of 1 to 8192 pixels a side");
    }
    const std::size_t size = std::size_t{count} * height * width * 3;
    Attachment taken;
    taken.words = {{"field", field}, {"frames", count}, {"height", height}, {"width", width}};
    taken.pixels.assign(pictures->pixels, pictures->pixels + size);
    return taken;
}

}  // namespace kinograph
