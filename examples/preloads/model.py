"""Worker preload: a model that takes long to load, loaded once a worker and kept across edits of this file."""

import time

KEEP = ("model",)  # copied from the running generation when this file is saved

model = None
THRESHOLD = 0.5  # edit me while the cluster runs: the model stays


def load_model():
    time.sleep(0.2)  # what gigabytes from a disk would take
    return {"weight": 0.01, "loaded_at": time.time()}


def dask_setup(worker):
    global model
    if model is None:
        model = load_model()


def predict(x):
    """Called by tasks: ``from model import predict`` there gives the newest generation's."""
    return model["weight"] * x > THRESHOLD
