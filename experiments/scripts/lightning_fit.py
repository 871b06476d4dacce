"""Lightning's Trainer: a net of 20 layers on scikit-learn's digits."""

import lightning as L  # pyright: ignore[reportMissingImports]  # only the paths need it
import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]  # make experiments installs it
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Deep(L.LightningModule):
    """A plain net of ReLU layers."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [part for _ in range(18) for part in (nn.Linear(64, 64), nn.ReLU())]
        for part in hidden[::2]:
            nn.init.kaiming_normal_(next(part.parameters()), nonlinearity="relu")
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), *hidden, nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


L.seed_everything(0)
torch.set_num_threads(1)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
data = TensorDataset(images.float() / 8 - 1, labels)
trainer = L.Trainer(
    max_steps=250,
    accelerator="cpu",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Deep(), DataLoader(data, batch_size=64, shuffle=True))
