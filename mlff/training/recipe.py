"""What a config leaves open, chosen from the data: cutoff, channels, length of training, learning rate of fine-tuning.

A choice is made only where the config says nothing; each comes with its reason. A potential to start from decides about
its model.
"""

from __future__ import annotations

from mlff.config.options import ACE, Config
from mlff.data.batching import usual_batch
from mlff.data.dataset import Dataset
from mlff.potential.potential import Potential

MOLECULES, PERIODIC = 4.0, 5.0  #: Å
STEPS = 25_000  #: of optimisation, when neither epochs nor hours are said
EPOCHS = (20, 1000)  #: at least and at most
FINE = 0.25  #: learning rate of fine-tuning, as a share of that of a training from random weights


def choose(config: Config, data: Dataset, beginning: Potential | None = None) -> tuple[Config, list[str]]:
    """The config with nothing left open, and one line for each choice.

    `data`: the training set. `beginning`: the potential to start from, whose model is taken where the config does not say
    another (which `mlff.training.start` then refuses).
    """
    model, reasons = config.model, []
    said = model.model_fields_set
    if beginning is not None and isinstance(beginning.config, type(model)):
        taken = {
            name: value
            for name, value in dict(beginning.config).items()
            if name not in said and value != getattr(model, name)
        }
        if taken:
            reasons.append(f"model: {', '.join(f'{k} {v}' for k, v in taken.items())}, as in the potential to start from")
        model = model.model_copy(update=taken)
    elif isinstance(model, ACE) and "cutoff" not in said:
        periodic = any(structure.pbc.any() for structure in data.structures if len(structure) > 1)
        model = model.model_copy(update={"cutoff": PERIODIC if periodic else MOLECULES})
        reasons.append(
            f"model.cutoff: {model.cutoff:g} Å, for there are {'periodic cells' if periodic else 'only molecules'}"
        )
    training = config.training
    if training.epochs is None and training.max_hours is None:
        batch = training.batch_size or usual_batch([len(structure) for structure in data.structures])
        steps = max(1, -(-len(data) // batch))
        epochs = min(max(round(STEPS / steps), EPOCHS[0]), EPOCHS[1])
        training = training.model_copy(update={"epochs": epochs})
        reasons.append(f"training.epochs: {epochs}, about {epochs * steps:,} steps for {len(data):,} structures")
    optimizer = config.optimizer
    if beginning is not None and not beginning.pretrained and "learning_rate" not in optimizer.model_fields_set:
        optimizer = optimizer.model_copy(update={"learning_rate": FINE * optimizer.learning_rate})
        reasons.append(f"optimizer.learning_rate: {optimizer.learning_rate:g}, a quarter of the usual one for fine-tuning")
    return config.model_copy(update={"model": model, "training": training, "optimizer": optimizer}), reasons
