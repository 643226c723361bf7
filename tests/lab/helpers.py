"""What the laboratory's tests share: a small experiment, and its images."""

from comrope.lab.experiment import Experiment, Recipe

QUICK = Experiment(
    data="digits",
    num_train=60,
    num_test=40,
    model="tiny",
    image_size=(8, 8),
    recipe=Recipe(epochs=2, batch_size=20, learning_rate=3e-3),
)
"""Two epochs of three steps: a second."""
