"""From the settings of task and model to the task that is trained.

A new task or model is a case in the functions below, settings in `config.tasks`, and a
line in the tables of what fits together (`config.experiment`, `expected`); a task also
names its data in `identity`. One's own needs none of that: an import target.
"""

import functools

import numpy as np

from adaprec_jax.runs import config, imports
from adaprec_jax.runs.config import Experiment
from adaprec_jax.tasks import (
    denoising,
    digits,
    fashion_mnist,
    function,
    models,
    network,
    objectives,
    shakespeare,
    teacher,
)
from adaprec_jax.tasks.network import Model
from adaprec_jax.tasks.task import (
    Batch,
    Data,
    Split,
    Task,
    from_network,
    gather_rows,
    widen,
)

# A digit as a model reads it: a row of pixels, a sequence of rows, nodes, an image.
_DIGIT = {
    "recurrent": (8, 8),
    "graph": (64, 1),
    "resnet": (8, 8, 1),
    "vit": (8, 8, 1),
}


def make_task(experiment: Experiment, data: Data | None = None) -> Task:
    """Returns the task of training the experiment's model.

    Args:
        experiment: All settings.
        data: In place of the task's own; a task of one's own takes none.

    Raises:
        InputError: A piece of one's own cannot be made.
        DataError: The data is missing, damaged, or other data.
        ValueError: The data is not finite, or an example does not fit into it.
        TypeError: The data has a dtype that would be cast.
    """
    settings, model = experiment.task, make_model(experiment)
    if isinstance(settings, config.ImportedTask):
        return imports.make(Task, settings, model=model)
    if data is None:
        data = load_data(settings)
    match settings:
        case config.Digits():
            shape = _DIGIT.get(experiment.model.kind, (64,))
            return digits.task(data, model, shape)
        case config.Denoising():
            return denoising.task(data, model)
        case config.FashionMNIST():
            return fashion_mnist.task(data, model)
        case config.Shakespeare():
            return shakespeare.task(data, model)
        case config.Function():
            return function.task(data, model)
        case config.Teacher():
            return teacher.task(data, model, settings.outputs)
        case config.Supervised():
            return _supervised(settings, data, model)


def load_data(task: config.Task) -> Data:
    """Returns the data of a task; not for one of one's own, which brings its data.

    Raises:
        DataError: It is missing, damaged, or other data.
        ValueError: An example does not fit into it.
    """
    match task:
        case config.Digits():
            return digits.load()
        case config.Denoising():
            return denoising.load()
        case config.FashionMNIST(folder=folder):
            return fashion_mnist.load(fashion_mnist.SOURCE._replace(folder=folder))
        case config.Shakespeare(folder=folder, context=context):
            source = shakespeare.SOURCE._replace(folder=folder)
            return shakespeare.load(source, context=context)
        case config.Function(size=size):
            return function.load(size)
        case config.Teacher(target=target):
            return teacher.load(target, **task.model_dump(exclude={"kind", "target"}))
        case config.Supervised(data=own):
            return imports.make(Data, own)
    raise TypeError(f"{task.kind} has no data of its own.")


def blank_data(task: config.Task) -> Data | None:
    """Returns a blank example in the shape of the task's, as data of one row.

    None for data of one's own, of which nothing is known before it is loaded.
    """
    dtype, target = np.uint8, np.zeros(1, np.int32)
    match task:
        case config.Digits() | config.Denoising():
            shape = (64,)
        case config.FashionMNIST():
            shape = (28, 28)
        case config.Shakespeare(context=context):
            shape, target = (context,), np.zeros((1, context), np.uint8)
        case config.Function():
            shape, dtype = (2,), np.float32
            target = np.zeros((1, 1), np.float32)
        case config.Teacher(target=kind, features=features, outputs=outputs):
            shape, dtype = (features,), np.float32
            if kind == "regression":
                target = np.zeros((1, outputs), np.float32)
        case _:
            return None
    row = np.zeros(1, np.int32)
    return Data(
        arrays=Batch(np.zeros((1, *shape), dtype), target),
        split=lambda seed: Split(row, row, row),
        gather=gather_rows,
        fingerprint="blank",
    )


def make_model(experiment: Experiment) -> Model:
    """Returns the model, with as many outputs as its task has."""
    task, fields = experiment.task, experiment.model.model_dump(exclude={"kind"})
    outputs = task.outputs
    match experiment.model:
        case config.ImportedModel():
            return imports.make_function(experiment.model, outputs=outputs)
        case config.Transformer():
            context = task.context if isinstance(task, config.Shakespeare) else 128
            return models.Transformer(**fields, context=context)
        case config.ViT():
            return functools.partial(
                models.ViT, image=_DIGIT["vit"], outputs=outputs, **fields
            )
        case config.Graph():
            return functools.partial(
                models.Graph, grid=(8, 8), features=1, outputs=outputs, **fields
            )
        case config.Denoiser():
            return models.Denoiser(**fields)
        case config.Siren():
            return functools.partial(models.Siren, features=2, outputs=1, **fields)
    modules = {
        "mlp": models.MLP,
        "cnn": models.CNN,
        "resnet": models.ResNet,
        "recurrent": models.Recurrent,
        "experts": models.Experts,
    }
    return modules[experiment.model.kind](**fields, outputs=outputs)


def _supervised(settings: config.Supervised, data: Data, model: Model) -> Task:
    """Returns the task of classifying or fitting data of one's own."""
    if settings.target == "regression":
        objective = objectives.regression()
    else:
        objective = objectives.classification(settings.outputs)
        targets = data.arrays.targets
        if not np.issubdtype(targets.dtype, np.integer):
            raise TypeError(
                f"Classes are whole numbers, int32, got {targets.dtype}; numbers to be "
                'fitted need task.target="regression".'
            )
        lowest, highest = targets.min(), targets.max()
        if lowest < 0 or highest >= settings.outputs:  # their loss would be NaN
            raise ValueError(
                f"task.outputs is {settings.outputs}, but the classes are {lowest} to "
                f"{highest}."
            )
    return from_network("supervised", data, network.of(model), objective, widen)
