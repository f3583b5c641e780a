"""A video from a prompt, with the built-in model: python examples/generate.py "a small blue star moves up" """

import sys

import kinograph

prompt = sys.argv[1] if len(sys.argv) > 1 else "a large red ball moves left on a plain navy background, flat style"
with kinograph.load() as pipe:
    video = pipe(prompt, seed=7)
video.save("generate.mp4", force=True)
