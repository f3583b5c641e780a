/* A video from a prompt in C: every frame as a PPM file, as soon as it is decoded.
 *
 *     video BUNDLE PROMPT FOLDER
 */
#include <kinograph.h>
#include <stdio.h>

static int save(void *folder, const kinograph_frames *frames) {
    const kinograph_pictures *p = &frames->pictures;
    const size_t size = (size_t)p->height * p->width * 3;
    for (uint32_t i = 0; i < p->count; i++) {
        char path[4096];
        FILE *file;
        size_t written;
        snprintf(path, sizeof path, "%s/%04llu.ppm", (const char *)folder, (unsigned long long)(frames->first + i));
        file = fopen(path, "wb");
        if (!file) return 1;
        fprintf(file, "P6\n%u %u\n255\n", (unsigned)p->width, (unsigned)p->height);
        written = fwrite(p->pixels + i * size, 1, size, file);
        if (fclose(file) != 0 || written != size) return 1;
    }
    return 0;
}

static int show(void *folder, const char *stage, double done, double total, const char *unit) {
    (void)folder;
    if (total > 0) fprintf(stderr, "\r%s %.0f/%.0f %s   ", stage, done, total, unit);
    return 0;
}

int main(int argc, char **argv) {
    kinograph_options options = {0};
    kinograph_callbacks callbacks = {0};
    kinograph_pipeline *pipeline = NULL;
    kinograph_request *request = NULL;
    kinograph_status status;
    if (argc != 4) {
        fprintf(stderr, "usage: video BUNDLE PROMPT FOLDER\n");
        return KINOGRAPH_USAGE;
    }
    options.bundle = argv[1];
    callbacks.user = argv[3];
    callbacks.frames = save;
    callbacks.progress = show;
    status = kinograph_open(&options, &pipeline);
    if (status == KINOGRAPH_OK) {
        request = kinograph_request_new(argv[2]);
        kinograph_request_set_integer(request, "seed", 7);
        status = kinograph_generate(pipeline, request, &callbacks);
    }
    if (status == KINOGRAPH_OK) {
        fprintf(stderr, "\n");
        printf("%s\n", kinograph_report(pipeline));
    } else {
        fprintf(stderr, "\n%s\n", kinograph_error());
    }
    kinograph_request_free(request);
    kinograph_close(pipeline);
    return (int)status;
}
