"""Training loops of other libraries end in the weights of a plain one, to the bit."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compat_table import BATCH, assert_weights_of_a_plain_loop, images_and_labels, optimizer_of
from timm.optim import create_optimizer_v2


def loader():
    data = torch.utils.data.TensorDataset(*images_and_labels(24))
    return torch.utils.data.DataLoader(data, batch_size=BATCH)


@pytest.mark.library("accelerate")
def test_accelerate_ends_in_the_weights_of_a_plain_loop(tiny):
    """Accelerate with an optimizer of create_optimizer ends in the weights of a plain loop, to the bit."""
    accelerate = pytest.importorskip("accelerate")
    model = tiny(num_classes=10).train()
    plain = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, batches = accelerator.prepare(model, optimizer_of(model), loader())
    for images, labels in batches:
        accelerator.backward(F.cross_entropy(model(images), labels))
        optimizer.step()
        optimizer.zero_grad()
    assert_weights_of_a_plain_loop(accelerator.unwrap_model(model), plain)


@pytest.mark.library("lightning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's, of torch's older names
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*treespec")
@pytest.mark.parametrize("by_callback", [False, True], ids=["optimizer", "callback"])
def test_lightning_ends_in_the_weights_of_a_plain_loop(tiny, tmp_path, by_callback):
    """Lightning with an optimizer of create_optimizer ends in the weights of a plain loop, to the bit."""
    lightning = pytest.importorskip("lightning")
    names: dict = {}  # of the callback in the documentation
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    exec(re.search(r"```python lightning\n(.*?)```", page, flags=re.DOTALL)[1], names)

    class Module(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self):
            if by_callback:
                return create_optimizer_v2(self.model, "sgd", lr=0.05, momentum=0.9)
            return optimizer_of(self.model)

    model = tiny(num_classes=10).train()
    plain = copy.deepcopy(model)
    trainer = lightning.Trainer(
        callbacks=[names["AdaptiveClipping"]()] if by_callback else [],
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(model), loader())
    assert_weights_of_a_plain_loop(model, plain)


@pytest.mark.library("fastai")
@pytest.mark.filterwarnings("ignore")  # fastai's, of NumPy's, torch's and IPython's older names
def test_fastai_ends_in_the_weights_of_a_plain_loop(tiny):
    """fastai with an optimizer of create_optimizer ends in the weights of a plain loop, to the bit."""
    learner = pytest.importorskip("fastai.learner")
    from fastai.data.core import DataLoaders
    from fastai.optimizer import OptimWrapper

    model = tiny(num_classes=10).train()
    plain = copy.deepcopy(model)
    learn = learner.Learner(
        DataLoaders(loader(), loader()),
        model,
        loss_func=F.cross_entropy,
        opt_func=lambda params, **_: OptimWrapper(opt=optimizer_of(model)),
    )
    learn.fit(1, lr=0.05)
    assert_weights_of_a_plain_loop(model, plain)
