"""The trunk and the second head under a search: confused round by round, and asked what they believe."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.data.samples import FloatArray, IntArray
from antibackdoor.data.streams import Stream
from antibackdoor.models.features import coarse, n_parts, pooled_parts
from antibackdoor.models.hooks import trunk_features
from antibackdoor.models.tokens import channels_first
from antibackdoor.models.two_head import TwoHead
from antibackdoor.search.confusion import confusion, margin
from antibackdoor.search.warm_up import draw
from antibackdoor.training.loop import train_epoch
from antibackdoor.training.session import Feed, Session

LOOKING = "scoring samples"  # what the progress bar says


class SecondHead:
    """A network in a search. It changes with every round; the optimizer steps are counted.

    Attributes:
        session: Device, precision, processes.
        feed: The data, as the network gets them.
        net: The network.
        draws: Where the rows of each batch come from.
        steps: Optimizer steps taken.
    """

    def __init__(
        self,
        session: Session,
        feed: Feed,
        net: TwoHead,
        draws: np.random.Generator,
        *,
        n_steps: int,
        learning_rate: float,
        weight: float,
    ) -> None:
        """Take a network as it is.

        Args:
            session: Device, precision, processes.
            feed: The data, as the network gets them.
            net: After the warm-up.
            draws: Where the rows of each batch come from.
            n_steps: Optimizer steps of a round.
            learning_rate: The optimizer's.
            weight: Of the clean rows, those of the suspects being 1.
        """
        self.session, self.feed, self.net, self.draws = session, feed, net, draws
        self.n_steps, self.learning_rate, self.weight = n_steps, learning_rate, weight
        self.steps = 0

    def confuse(self, suspects: IntArray, clean: IntArray) -> None:
        """One round, half of each batch from either: the suspects keep their label, the clean rows are to have none."""
        device = self.session.device
        keeps_label = torch.zeros(len(self.feed.labels), dtype=torch.bool, device=device)
        keeps_label[torch.as_tensor(suspects, device=device)] = True
        optimizer = self.session.optimizer(self.net.parameters(), self.learning_rate)
        half = self.session.batch_size // 2
        plan = [
            np.concatenate([draw(self.draws, rows, half) for rows in (suspects, clean)]) for _ in range(self.n_steps)
        ]
        train_epoch(
            self.session,
            self.feed,
            plan,
            self.net,
            confusion(self.net, keeps_label, self.weight),
            optimizer,
            seed=(self.session.recipe.seed, Stream.CONFUSION_STEP, self.steps),
            title="confusion training",
        )
        self.steps += len(plan)

    def look(self, rows: IntArray) -> FloatArray:
        """Log-odds of each row's own label, `(len(rows),)`."""
        self.net.eval()
        return self.session.evaluate(self.feed, self.net.second_logits, margin, rows, title=LOOKING).astype(np.float64)

    def look_closely(self, rows: IntArray) -> tuple[FloatArray, NDArray[np.float32]]:
        """The same, and the coarse features that it comes from, `(len(rows), D)`."""
        n_outputs = self.net.n_outputs

        def forward(inputs: Tensor) -> Tensor:
            features = trunk_features(self.net.network, self.net.attach, inputs)
            turned = channels_first(self.net.network, self.net.attach, features)
            return torch.cat([self.net.second(features).float(), coarse(turned.float())], dim=1)

        def reduce(values: Tensor, labels: Tensor) -> Tensor:
            return torch.cat([margin(values[:, :n_outputs], labels)[:, None], values[:, n_outputs:]], dim=1)

        self.net.eval()
        looked = self.session.evaluate(self.feed, forward, reduce, rows, title=LOOKING)
        return looked[:, 0].astype(np.float64), looked[:, 1:]

    def parts(self, rows: IntArray) -> NDArray[np.float32]:
        """Coarse values of the parts of each row, `(len(rows), P, D)`; the network has no say in them."""
        parts = self.session.evaluate(self.feed, pooled_parts, lambda values, _: values, rows, title="comparing")
        return parts.reshape(len(parts), n_parts(self.feed.inputs.shape[1:]), -1)
