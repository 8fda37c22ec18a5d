"""The options of a training run, as pydantic models; `configfile` reads them.

Defaults are those a user would start from; units stand in every description. `Config.model_json_schema()` is the schema
for editors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, create_model

from mlff.basics.properties import CARRIED, PREDICTED, PROPERTIES
from mlff.basics.units import LENGTH, VOIGT


class Section(BaseModel):
    """Keys that are known, values that do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


StressOrder = Literal[(*VOIGT, "unknown")]


_Keys = create_model(
    "_Keys",
    __base__=Section,
    **{
        name: (str | None, Field(None, description=f"key of the {known.what}, e.g. {name}, REF_{name}"))
        for name, known in PROPERTIES.items()
    },
)
_UnitNames = create_model(
    "_UnitNames",
    __base__=Section,
    **{
        name: (Literal[tuple(known.units)] | None, Field(None, description=f"unit; default: {next(iter(known.units))}"))
        for name, known in PROPERTIES.items()
    },
)


class KeyNames(_Keys):
    """Where labels stand in the file: one key for each of `PROPERTIES` and these. None: the usual names are looked up (and reported)."""

    virial: str | None = Field(None, description="key of the virial (an energy); turned into a stress by the cell's volume")
    group: str | None = Field(None, description="info key whose value groups frames, e.g. trajectory")
    weight: str | None = Field(None, description="info key of a structure's weight in the loss")


class Units(_UnitNames):
    """Units and signs of the file: one unit for each of `PROPERTIES`, and these. None: what the file states or its format
    fixes, else the default named; the census says which. The unit of forces is by default that of energies per that of lengths.
    """

    energy_per_atom: bool | None = Field(
        None, description="true: energies are per atom, not of the whole structure; default: false"
    )
    length: Literal[tuple(LENGTH)] | None = Field(None, description="unit of positions and cell; default: Angstrom")
    forces_sign: Literal[tuple(PROPERTIES["forces"].signs)] | None = Field(
        None, description="force: the file holds -dE/dR; gradient: +dE/dR; default: force"
    )
    stress_sign: Literal[tuple(PROPERTIES["stress"].signs)] | None = Field(
        None,
        description="what a positive stress means: tension (ASE, +dE/dstrain/V) or compression (VASP's output, a pressure); default: tension",
    )
    stress_order: StressOrder | dict[str, StressOrder] | None = Field(
        None,
        description="order of a stress or virial of six numbers: ase (xx yy zz yz xz xy, the default), vasp (xx yy zz xy yz xz), lammps "
        "(xx yy zz xy xz yz) or unknown (left out); or one per value of keys.group: {Elastic: vasp}, others being unknown",
    )
    virial_sign: Literal["stress", "minus_stress"] | None = Field(
        None,
        description="virial = minus_stress (-stress*V, DeePMD, NEP, CASTEP) or stress (+stress*V); default: minus_stress",
    )


class ReadOptions(Section):
    """How files of reference data are read."""

    keys: KeyNames = KeyNames()
    units: Units = Units()
    skip: Annotated[
        list[Literal["unreadable", "unconverged", "duplicates", "outliers"]],
        pydantic.BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(
        [],
        description="leave out, count and name: unreadable structures (broken labels or geometry, a file cut short), unconverged ones as the file marks them, later copies of a "
        "geometry (all where their labels contradict each other), outliers as mlff lint finds them; the last two of training data only",
    )


class Source(Section):
    """A file with keys or units of its own; what these do not say is as in data.keys and data.units."""

    file: str = Field(description="file; globs allowed; relative to the config file")
    keys: KeyNames = KeyNames()
    units: Units = Units()


class Data(ReadOptions):
    """Files, splits and the energy baseline."""

    train: str | Source | list[str | Source] = Field(
        description="file or files with training structures; globs allowed; relative to the config file; {file: ..., units: ...} for one with "
        "units or keys of its own"
    )
    valid: str | Source | list[str | Source] | None = Field(
        None, description="file or files with validation structures; default: split off the training set"
    )
    test: dict[str, str | Source] | str | list[str] | None = Field(
        None, description="held-out file(s), evaluated once at the end; name: file, or a list"
    )
    valid_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the training file kept for validation when `valid` is not given"
    )
    split: Literal["random", "group"] = Field("random", description="group: frames with equal `keys.group` stay together")
    n_train: int | None = Field(None, gt=0, description="use only so many training structures (chosen by the seed)")
    reference_energies: Literal["auto", "isolated", "least_squares", "none"] | dict[str, float] = Field(
        "auto",
        description="energy per element in eV taken off before training: given ({H: -13.6}), from isolated atoms in the data, by least "
        "squares, or auto (isolated where complete, else least squares)",
    )
    lint: Annotated[
        Literal["stop", "warn", "off"], pydantic.BeforeValidator(lambda value: "off" if value is False else value)
    ] = Field(
        "stop", description="contradictions found in the training set (see mlff lint): stop, warn and go on, or do not look"
    )
    replay: str | Source | list[str | Source] | None = Field(
        None,
        description="file or files with data that the model of `finetune_from` was trained on: some are trained on along with the new ones, "
        "so that they are not forgotten",
    )
    replay_share: float = Field(
        0.5, gt=0, lt=1, description="share of these in an epoch; others of them are drawn in each epoch"
    )
    replay_readout: Literal["shared", "own"] = Field(
        "shared",
        description="own: the data of `replay` are of another method and are read out by a second readout, which is kept in "
        "replayed.safetensors; shared: one potential for both",
    )


class SchNet(Section):
    """Continuous-filter convolution on scalars (Schütt et al., J. Chem. Phys. 148, 241722 (2018)): the textbook baseline."""

    architecture: Literal["schnet"] = Field("schnet", description="which model this section is of")
    cutoff: float = Field(5.0, gt=0.5, le=100, description="cutoff radius, Å")
    channels: int = Field(64, gt=0, description="features per atom")
    layers: int = Field(3, gt=0, description="interaction blocks")
    radial_basis: int = Field(32, gt=1, description="Gaussians on [0, cutoff]")
    zbl: bool = Field(True, description="add the Ziegler-Biersack-Littmark repulsion at short range")


class ACE(Section):
    """Many-body message passing: atomic-cluster-expansion products on the sphere, equivariant messages, invariant energy."""

    architecture: Literal["ace"] = Field("ace", description="which model this section is of")
    cutoff: float = Field(
        5.0,
        gt=0.5,
        le=100,
        description="cutoff radius, Å; where training is not told: 4 for molecules, 5 where there are periodic cells",
    )
    channels: int = Field(64, gt=0, description="features per atom and harmonic")
    layers: int = Field(2, gt=0, description="message-passing layers")
    l_max: int = Field(3, ge=0, le=4, description="highest degree of the spherical harmonics of an atom's density")
    l_message: int = Field(
        2, ge=0, le=3, description="highest degree of the features passed between atoms; 0: invariant messages"
    )
    correlation: int = Field(3, ge=1, le=4, description="order of the products; 3 means up to four-body terms per layer")
    radial_basis: int = Field(
        16,
        gt=1,
        description="functions of distance: Chebyshev polynomials that resolve bonds finely and what lies beyond coarsely",
    )
    distance_decay: float = Field(
        1.0,
        ge=0,
        le=4,
        description="how fast a neighbour counts less with distance: 1: half as much at twice the bond length, 2: a quarter; 0: alike up to the cutoff",
    )
    cutoff_power: int = Field(
        4,
        ge=2,
        le=12,
        description="power of the smooth cutoff: the smaller, the earlier neighbours fade out on their way to the cutoff",
    )
    zbl: bool = Field(True, description="add the Ziegler-Biersack-Littmark repulsion at short range")


class LennardJones(Section):
    """4ε[(σ/r)¹² - (σ/r)⁶], every element alike: an oracle with nothing to learn, for tests and first examples."""

    architecture: Literal["lennard_jones"] = "lennard_jones"
    cutoff: float = Field(5.0, gt=0.5, le=100, description="cutoff radius, Å")
    epsilon: float = Field(0.01, gt=0, description="well depth, eV")
    sigma: float = Field(2.0, gt=0, description="zero of the energy, Å")


class Morse(Section):
    """D[(1 - exp(-a(r - r0)))² - 1], every element alike: an oracle with nothing to learn."""

    architecture: Literal["morse"] = "morse"
    cutoff: float = Field(5.0, gt=0.5, le=100, description="cutoff radius, Å")
    depth: float = Field(0.5, gt=0, description="well depth, eV")
    stiffness: float = Field(1.5, gt=0, description="1/Å")
    r0: float = Field(2.0, gt=0, description="minimum, Å")


ARCHITECTURES = {"ace": ACE, "schnet": SchNet}


def _default_architecture(model: Any) -> Any:
    return {"architecture": "ace", **model} if isinstance(model, dict) else model


Model = Annotated[
    ACE | SchNet,
    Field(discriminator="architecture"),
    pydantic.BeforeValidator(_default_architecture, json_schema_input_type=ACE | SchNet),
]


class _LossTerms(Section):
    @pydantic.model_validator(mode="before")
    @classmethod
    def _only_what_is_predicted(cls, values: Any) -> Any:
        others = [name for name in CARRIED if isinstance(values, dict) and name in values]
        if others:
            raise ValueError(
                f"{others[0]} is no term of the loss, since no model predicts it; leave it out. The terms are {', '.join(PREDICTED)}"
            )
        return values


class WeightStage(_LossTerms):
    """From `start` on (share of training, 0 to 1) these weights hold; between stages the last ones stay."""

    start: float = Field(ge=0, le=1, description="share of the training after which these weights hold")
    energy: float | None = Field(None, ge=0, description="weight of the energy term from then on; default: as before")
    forces: float | None = Field(None, ge=0, description="weight of the force term from then on; default: as before")
    stress: float | None = Field(None, ge=0, description="weight of the stress term from then on; default: as before")


class Loss(_LossTerms):
    """Weighted sum of energy, force and stress terms.

    The terms are means over structures of |ΔE/n| (or its square), over force components and over stress components, in
    units of the data's own scale (force RMS s_F of the training set, or what varies where all forces are zero: energies per
    atom in s_F·Å, forces in s_F, stresses in s_F/Å²), so weights mean the same for soft and stiff systems.
    """

    energy: float = Field(
        0.5, ge=0, description="weight of the energy term; more than 1 costs forces with mae, about 10 is good with mse"
    )
    forces: float = Field(1.0, ge=0, description="weight of the force term; 0 trains on energies only")
    stress: float = Field(0.0, ge=0, description="weight of the stress term")
    error: Literal["mse", "mae"] = Field(
        "mae", description="squared or absolute error; default: mae, but mse with forces: 0 (energies only)"
    )
    stretched: float | None = Field(
        None, ge=0, description="weight of pull-back of stretched bonds (no labels); default: 0.1 where forces are learned"
    )
    schedule: list[WeightStage] = Field([], description="changes of the weights in the course of training")

    def at(self, progress: float) -> dict[str, float]:
        """The weights of the terms at this share of training (0 to 1)."""
        current = {name: getattr(self, name) for name in PREDICTED}
        for stage in sorted(self.schedule, key=lambda stage: stage.start):
            if stage.start <= progress:
                current |= {name: value for name in current if (value := getattr(stage, name)) is not None}
        return current

    @pydantic.model_validator(mode="after")
    def _some_weight(self) -> Loss:
        for start in sorted({0.0, *(stage.start for stage in self.schedule)}):
            if not any(self.at(start).values()):
                what = f"energy, forces and stress all have weight 0 from {start:g} of training on"
                raise ValueError(f"{what}: nothing is learned then")
        return self

    @pydantic.model_validator(mode="before")
    @classmethod
    def _default_error(cls, values: Any) -> Any:
        if isinstance(values, dict) and "error" not in values and values.get("forces") == 0:
            return {**values, "error": "mse"}
        return values


class Schedule(Section):
    """Learning rate in the course of training."""

    kind: Literal["constant", "cosine", "exponential", "plateau", "restarts"] = Field(
        "cosine",
        description="how the learning rate falls; plateau: when validation no longer improves; restarts: cosines one after another, "
        "each from the full rate and twice as long as the one before (SGDR: Loshchilov & Hutter, ICLR 2017)",
    )
    warmup_fraction: float = Field(0.01, ge=0, lt=1, description="share of training with linear warm-up")
    final_fraction: float = Field(
        0.01,
        gt=0,
        le=1,
        description="last learning rate as a share of the first (cosine, exponential; restarts: of each cosine); floor (plateau)",
    )
    cycles: int = Field(3, gt=1, le=10, description="restarts: how many cosines")
    factor: float = Field(0.5, gt=0, lt=1, description="plateau: multiply by this")
    patience: int = Field(10, gt=0, description="plateau: after so many validations without improvement")


Factor = Annotated[float, Field(ge=0, le=100)]


class Optimizer(Section):
    """Gradient descent."""

    name: Literal["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "muon"] = Field(
        "muon", description="muon: momentum made orthogonal for matrices, Adam for the rest"
    )
    learning_rate: float = Field(0.006, gt=0, description="good for muon; adam wants about 0.01 here")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (name: momentum)")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of the gradients (Adam and its kin)")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean of their squares (Adam and its kin)")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="decoupled weight decay (adamw, muon); helps long pre-training on a cheap method, costs accuracy elsewhere",
    )
    clip: float | None = Field(1.0, gt=0, description="largest global norm of the gradient; none: no clipping")
    schedule: Schedule = Schedule()
    plasticity: dict[str, Factor | tuple[Factor, Factor]] = Field(
        {},
        description="factor on the learning rate of parameters, by patterns over their names, {'layer_0/*': 0, 'embedding': [0, 1]}: 0 is "
        "frozen, 1 free; two numbers: from the one to the other in the course of training; the last pattern that matches counts",
    )
    plasticity_map: str | None = Field(
        None,
        description="file with a factor for every single parameter (mlff plasticity); times `plasticity`; relative to the config file",
    )


class Training(Section):
    """How long, how much at once, when to stop."""

    epochs: int | None = Field(
        None,
        gt=0,
        description="passes over the training set; default: as many as fit into max_hours, without it about 25,000 steps, in 20 to 1,000 epochs",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        description="hours of training, compilation included; the schedule is stretched to it. With epochs: what ends first",
    )
    batch_size: int | None = Field(
        None, gt=0, description="structures per step; default: about 80 atoms, from 1 structure to 5 of the mean size"
    )
    max_atoms: int | None = Field(
        None, gt=0, description="atoms per step at most; default: batch_size times the mean size of a structure"
    )
    devices: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(
        1,
        description="devices that share each step, over all processes: a number, or auto: all there are; batch_size and "
        "max_atoms are those of the whole step (docs/guides/many_devices.md)",
    )
    starts: int = Field(
        1,
        gt=0,
        le=64,
        description="trainings side by side in one program, from other first weights, with the same batches; hours are shared by all of them",
    )
    keep: Literal["best", "committee"] = Field(
        "best", description="of several starts: the one with the best validation, or all of them as a committee"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="decay of the moving average of the weights (0: none)")
    patience: int | None = Field(None, gt=0, description="stop after so many validations without improvement")
    validate_every: int = Field(1, gt=0, description="epochs between validations")
    checkpoint_every: int = Field(
        1, gt=0, description="epochs between checkpoints (at most one in ten seconds, at least one in ten minutes)"
    )
    tensorboard: bool = Field(True, description="write TensorBoard events beside the JSON lines")

    @pydantic.model_validator(mode="after")
    def _starts(self) -> Training:
        if self.starts > 1 and self.devices != 1:
            raise ValueError(f"starts: {self.starts} and devices: {self.devices} do not go together; leave one of them out")
        if self.starts == 1 and self.keep == "committee":
            raise ValueError(
                "keep: committee joins several starts, and there is one; write starts: 2 or more, or leave it out"
            )
        return self


class Pretraining(Section):
    """Learning without labels, by `mlff pretrain` alone: from what structures look like when they are moved a little."""

    method: Literal["contrastive", "denoising"] = Field(
        "contrastive",
        description="contrastive: two views of a structure and of each atom are told from those of others; denoising: forces "
        "point back to where displaced atoms were",
    )
    displacement: float = Field(
        0.05, gt=0, le=1, description="standard deviation by which atoms are displaced along each direction, Å"
    )
    strain: float = Field(
        0.02, ge=0, le=0.2, description="contrastive: standard deviation of the strains of periodic cells, without unit"
    )
    temperature: float = Field(
        0.1, gt=0, description="contrastive: by which similarities (-1 to 1) are divided in the softmax, without unit"
    )
    atoms: float = Field(
        0.5, ge=0, le=1, description="contrastive: share of the atoms' term in the loss; the rest is that of the structures"
    )


class Config(Section):
    """Everything about a training run."""

    seed: int = Field(0, ge=0, description="seed of the split, the weights and the order of batches")
    member: int = Field(
        0,
        ge=0,
        description="which member of a committee: other weights and another order of batches, the same split (mlff committee)",
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="of the calculation; reference energies are added in float64 in any case"
    )
    finetune_from: str | None = Field(
        None,
        description="model file to start from instead of random weights (fine-tuning, see mlff finetune); relative to the config file. The "
        "learning rate is then a quarter where it is not said",
    )
    data: Data
    model: Model = ACE()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    pretraining: Pretraining = Pretraining()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: {} if value is None and name in _SECTIONS else value for name, value in values.items()}


_SECTIONS = ("data", "model", "loss", "optimizer", "training", "pretraining")
