/* Kinograph for C, C++ and whatever calls C: videos from a prompt, frame by frame, in the memory of your program.
 *
 * A pipeline is a bundle that stays open, in a process of its own: that of the command `kinograph serve`, which has to
 * be installed. What goes wrong there, be it for want of memory, ends that process and not yours.
 *
 * Every function that can fail returns a status. `kinograph_error` then has the words: what happened, what was expected
 * and what to do. Text is UTF-8. Pictures are rows from top to bottom of red, green and blue, a byte each, with nothing
 * between rows or pictures.
 */
#ifndef KINOGRAPH_H
#define KINOGRAPH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define KINOGRAPH_API __attribute__((visibility("default")))
#else
#define KINOGRAPH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The exit codes of the command. */
typedef enum kinograph_status {
    KINOGRAPH_OK = 0,
    KINOGRAPH_INTERNAL = 1, /* a fault of Kinograph's own */
    KINOGRAPH_USAGE = 2,    /* called wrongly: an unknown device or variant, no command `kinograph`, two runs at once */
    KINOGRAPH_REQUEST = 3,  /* what this model cannot do; the words name the nearest that it can */
    KINOGRAPH_BUNDLE = 4,   /* missing, damaged, altered, or of another version */
    KINOGRAPH_ENGINE = 5,   /* a device or an engine failed, or the process has ended */
    KINOGRAPH_MEMORY = 6,   /* does not fit; told before the work begins wherever that can be known */
    KINOGRAPH_OUTPUT = 7,   /* a file could not be written */
    KINOGRAPH_NUMERIC = 8,  /* the latents are not finite */
    KINOGRAPH_CANCELLED = 130
} kinograph_status;

/* The words of the last call of this thread that did not return KINOGRAPH_OK, until the next such call. Never NULL. */
KINOGRAPH_API const char *kinograph_error(void);

/* The version of this library, such as "0.1.0". */
KINOGRAPH_API const char *kinograph_version(void);

/* ---- Pipelines ---- */

typedef struct kinograph_pipeline kinograph_pipeline;

/* How a bundle is opened. All fields may be zero. */
typedef struct kinograph_options {
    const char *command;    /* path of the command; NULL is `kinograph` in the folders of PATH */
    const char *bundle;     /* a folder, or a name that is looked up in KINOGRAPH_BUNDLES; NULL is the built-in model */
    const char *device;     /* auto, cpu, cuda or cuda:N; NULL is auto */
    const char *variant;    /* a precision that the bundle has; NULL is the best for the device */
    uint64_t weight_budget; /* MiB of a component's weights that TensorRT keeps on the GPU; 0 is all of them */
    int no_cuda_graph;      /* a GPU runs the loop a step at a time */

    /* Files of LoRAs that are added to the transformer's float weights, a strength other than 1 behind an @, as in
     * "anime.safetensors@0.8"; after the last comes NULL. */
    const char *const *loras;
    const char *const *loras_2; /* those of a second expert */

    /* How far the bundle is verified, as `progress` of kinograph_callbacks. Anything but 0 gives up:
     * `kinograph_open` returns KINOGRAPH_CANCELLED. */
    int (*progress)(void *user, const char *stage, double done, double total, const char *unit);
    void *user; /* handed to it */
} kinograph_options;

/* Opens a bundle, each of whose files is verified. `options` may be NULL.
 * On success `*pipeline` is to be closed with `kinograph_close`; otherwise it is NULL. */
KINOGRAPH_API kinograph_status kinograph_open(const kinograph_options *options, kinograph_pipeline **pipeline);

/* Ends the process, whatever it does, and frees the pipeline. No other call may use it any more. NULL is allowed. */
KINOGRAPH_API void kinograph_close(kinograph_pipeline *pipeline);

/* What was opened, as a JSON object: `bundle`, `backend`, `variant`, `defaults` (size, frames, steps …), `speeds`.
 * It lasts as long as the pipeline. */
KINOGRAPH_API const char *kinograph_about(const kinograph_pipeline *pipeline);

/* ---- Requests ---- */

typedef struct kinograph_request kinograph_request;

/* A video of `prompt`, with the bundle's defaults for everything else. NULL where there is no memory.
 * To be freed with `kinograph_request_free`; it may be used for many videos, and by one thread at a time. */
KINOGRAPH_API kinograph_request *kinograph_request_new(const char *prompt);
KINOGRAPH_API void kinograph_request_free(kinograph_request *request);

/* Sets a field of `kinograph.Request` (docs/python.md has them all). Which fields there are, and what they may be, is
 * checked when a video is made.
 *   text:    negative_prompt, solver, speed, image, before, after, remix, inpaint, mask (paths), fit
 *   integer: width, height, num_frames, num_inference_steps, seed, window, overlap
 *   number:  fps, guidance_scale, guidance_scale_2, strength
 *   flag:    loop, anchor, cuts */
KINOGRAPH_API kinograph_status kinograph_request_set_text(kinograph_request *request, const char *field,
                                                          const char *value);
KINOGRAPH_API kinograph_status kinograph_request_set_integer(kinograph_request *request, const char *field,
                                                             uint64_t value);
KINOGRAPH_API kinograph_status kinograph_request_set_number(kinograph_request *request, const char *field,
                                                            double value);
KINOGRAPH_API kinograph_status kinograph_request_set_flag(kinograph_request *request, const char *field, int value);

/* From `seconds` on the video is of `prompt`. To be called in the order of the times. */
KINOGRAPH_API kinograph_status kinograph_request_add_cue(kinograph_request *request, double seconds,
                                                         const char *prompt);

/* `count` pictures in memory. */
typedef struct kinograph_pictures {
    const uint8_t *pixels; /* count × height × width × 3 */
    uint32_t count;
    uint32_t height;
    uint32_t width;
} kinograph_pictures;

/* A picture that the video shows as frame `frame`; -1 is the last one. The pixels are copied. */
KINOGRAPH_API kinograph_status kinograph_request_add_picture(kinograph_request *request,
                                                             const kinograph_pictures *picture, int64_t frame);

/* A film for `field`: before, after, remix or inpaint, at the video's own rate; or for `mask`, which may be one
 * picture. The pixels are copied, and reach the model as they are. */
KINOGRAPH_API kinograph_status kinograph_request_set_film(kinograph_request *request, const char *field,
                                                          const kinograph_pictures *film);

/* Also writes a file, of the kind that its name says (.mp4, .mkv, .webm, .gif, .webp, or a folder/ of PNG). It is there
 * when the video is done, whole; one that exists is replaced only with `replace`. */
KINOGRAPH_API kinograph_status kinograph_request_set_output(kinograph_request *request, const char *path, int replace);

/* ---- Videos ---- */

/* Frames `first` to `first + pictures.count - 1` of `total`. The pixels last until the callback returns. */
typedef struct kinograph_frames {
    kinograph_pictures pictures;
    uint64_t first;
    uint64_t total;
} kinograph_frames;

/* What is called while a video is made, by the thread that makes it. All may be NULL. A callback that returns anything
 * but 0 cancels the video, and none is called after it. */
typedef struct kinograph_callbacks {
    void *user; /* handed to each of them */

    /* Frames are ready, while later ones are still being decoded. The process waits until this returns. */
    int (*frames)(void *user, const kinograph_frames *frames);

    /* `done` of `total` in `unit` ("steps", "frames", "s of film" or ""); `total` is negative while it is unknown. */
    int (*progress)(void *user, const char *stage, double done, double total, const char *unit);

    /* After step `step` of `steps`, what the video is going to look like: small pictures. */
    int (*preview)(void *user, const kinograph_pictures *pictures, uint64_t step, uint64_t steps);

    /* Something to know that stops nothing. */
    int (*warning)(void *user, const char *message);
} kinograph_callbacks;

/* Makes a video; returns when it is done. `callbacks` may be NULL. One at a time on a pipeline: for videos at the same
 * time, open several. After an error the pipeline can be used again, but for KINOGRAPH_ENGINE with the words that its
 * process has ended: then it can only be closed. */
KINOGRAPH_API kinograph_status kinograph_generate(kinograph_pipeline *pipeline, const kinograph_request *request,
                                                  const kinograph_callbacks *callbacks);

/* How the last video was made, as a JSON object: size, frames, seed, steps, bundle, backend … NULL where none was.
 * It lasts until the next is begun. */
KINOGRAPH_API const char *kinograph_report(const kinograph_pipeline *pipeline);

/* Ends the video that is being made, in the middle of a step: `kinograph_generate` returns KINOGRAPH_CANCELLED. From
 * any thread, though not from a signal's handler. Where nothing is made, nothing happens. */
KINOGRAPH_API void kinograph_cancel(kinograph_pipeline *pipeline);

#ifdef __cplusplus
}
#endif

#endif
