"""Networks: backbones, the user's own, where they can be cut, and what their layers say."""
