// A video that is continued from its own frames in memory, and written to one file: no frame is encoded twice.
//
//     continue BUNDLE PROMPT OUT.mp4
#include <iostream>
#include <kinograph.hpp>
#include <vector>

int main(int argc, char **argv) {
    if (argc != 4) {
        std::cerr << "usage: continue BUNDLE PROMPT OUT.mp4\n";
        return KINOGRAPH_USAGE;
    }
    try {
        kinograph_options options{};
        options.bundle = argv[1];
        kinograph::Pipeline pipeline(options, [](const char *stage, double done, double total, const char *unit) {
            if (total > 0) std::cerr << stage << ": " << done << " of " << total << " " << unit << "\n";
        });
        const std::string prompt = argv[2];

        std::vector<std::uint8_t> pixels;
        kinograph::Pictures film{};
        kinograph::Callbacks collect;
        collect.frames = [&](const kinograph::Frames &frames) {
            const kinograph::Pictures &p = frames.pictures;
            pixels.insert(pixels.end(), p.pixels, p.pixels + std::size_t{p.count} * p.height * p.width * 3);
            film.count += p.count;
            film.height = p.height;
            film.width = p.width;
        };
        pipeline.generate(kinograph::Request(prompt).set("seed", 7), collect);
        film.pixels = pixels.data();

        kinograph::Request longer(prompt);
        longer.set("seed", 8).set_film("before", film).set_output(argv[3], true);
        pipeline.generate(longer);
        std::cout << pipeline.report() << "\n";
    } catch (const kinograph::Error &error) {
        std::cerr << error.what() << "\n";
        return error.status();
    }
}
