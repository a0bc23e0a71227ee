"""Ask the workers' model about a few numbers. Run it with model.py, logs.py and device.py as preloads."""

import logging
import os

from localdask import connect, get_worker


def predict(x):
    import model  # the preload: its newest generation

    logging.info("asked about %d", x)
    return f"{x} {model.predict(x)} on device {os.environ['CUDA_VISIBLE_DEVICES']}", get_worker().name


with connect() as client:
    for answer, worker in client.gather([client.submit(predict, x, workers=f"w{x % 2}") for x in (20, 61, 80, 99)]):
        print(worker, answer)
