//! How files name the tensors of a text model that is part of a multimodal model.

use std::borrow::Cow;

/// Precedes all tensor names of a wrapped text model, and its paths in the table of formats.
pub(super) const WRAPPED: &str = "language_model.";

/// What precedes the names of the architecture in the names of the text model's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// Nothing.
    Plain,
    /// `language_model.` precedes all of them.
    Wrapped,
    /// `model.language_model.` replaces `model.`, and nothing precedes the head. Hugging Face uses these names.
    Inside,
}

impl Root {
    /// The root under which there is a tensor `name`. Every model of this architecture has this tensor.
    pub(super) fn find(name: &str, contains: impl Fn(&str) -> bool) -> Self {
        let roots = [Self::Plain, Self::Wrapped, Self::Inside];
        roots.into_iter().find(|root| contains(&root.full(name))).unwrap_or(Self::Plain)
    }

    /// The name in the files for `name` in the architecture.
    pub(super) fn full<'n>(self, name: &'n str) -> Cow<'n, str> {
        match (self, name.strip_prefix("model.")) {
            (Self::Wrapped, _) => Cow::Owned(format!("{WRAPPED}{name}")),
            (Self::Inside, Some(rest)) => Cow::Owned(format!("model.{WRAPPED}{rest}")),
            (Self::Plain, _) | (Self::Inside, None) => Cow::Borrowed(name),
        }
    }

    /// The name in MLX's files for `name` in the architecture. MLX's files do not use [`Self::Inside`].
    pub(super) fn written(self, name: &str) -> String {
        match self {
            Self::Plain => name.to_owned(),
            Self::Wrapped | Self::Inside => format!("{WRAPPED}{name}"),
        }
    }

    /// The name in the architecture for `name` in the files; `None` if the tensor belongs to another part of the
    /// multimodal model.
    pub(super) fn in_model<'n>(self, name: &'n str) -> Option<Cow<'n, str>> {
        match self {
            Self::Plain => Some(Cow::Borrowed(name)),
            Self::Wrapped => name.strip_prefix(WRAPPED).map(Cow::Borrowed),
            Self::Inside => match name.strip_prefix("model.") {
                Some(rest) => Some(Cow::Owned(format!("model.{}", rest.strip_prefix(WRAPPED)?))),
                None => Some(Cow::Borrowed(name)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let (layer, head) = ("model.layers.0.mlp.gate", "lm_head.weight");
        for (root, full) in [
            (Root::Plain, [layer, head]),
            (Root::Wrapped, ["language_model.model.layers.0.mlp.gate", "language_model.lm_head.weight"]),
            (Root::Inside, ["model.language_model.layers.0.mlp.gate", head]),
        ] {
            assert_eq!([layer, head].map(|name| root.full(name).into_owned()), full);
            assert_eq!(
                full.map(|name| root.in_model(name).map(Cow::into_owned)),
                [layer, head].map(|n| Some(n.to_owned()))
            );
            assert_eq!(Root::find(layer, |name| name == full[0]), root);
            let mlx = if root == Root::Plain { Root::Plain } else { Root::Wrapped };
            assert_eq!(
                [layer, head].map(|name| root.written(name)),
                [layer, head].map(|n| mlx.full(n).into_owned())
            );
        }
        assert_eq!(Root::Wrapped.in_model("vision_tower.x"), None);
        assert_eq!(Root::Inside.in_model("model.visual.x"), None);
    }
}
