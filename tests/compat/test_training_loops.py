"""Training loops of other libraries end in the weights of a plain one, to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from compat_table import BATCH, assert_weights_of_a_plain_loop, images_and_labels, optimizer_of


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
def test_lightning_ends_in_the_weights_of_a_plain_loop(tiny, tmp_path):
    """Lightning with an optimizer of create_optimizer ends in the weights of a plain loop, to the bit."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self):
            return optimizer_of(self.model)

    model = tiny(num_classes=10).train()
    plain = copy.deepcopy(model)
    trainer = lightning.Trainer(
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
