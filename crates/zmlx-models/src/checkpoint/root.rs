//! How files name the tensors of a text model inside a model of several kinds of input.

use std::borrow::Cow;

/// Before all names of a wrapped text model, and before its paths in the table of formats.
pub(super) const WRAPPED: &str = "language_model.";

/// What stands in the names of the text model's tensors beside the names that its architecture has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// Nothing.
    Plain,
    /// `language_model.` before all of them.
    Wrapped,
    /// `model.language_model.` instead of `model.`, and nothing before the head: as Hugging Face writes them.
    Inside,
}

impl Root {
    /// The root under which there is a tensor `name`, which every such model has.
    pub(super) fn find(name: &str, contains: impl Fn(&str) -> bool) -> Self {
        let roots = [Self::Plain, Self::Wrapped, Self::Inside];
        roots.into_iter().find(|root| contains(&root.full(name))).unwrap_or(Self::Plain)
    }

    /// The name in the files of what the architecture calls `name`.
    pub(super) fn full<'n>(self, name: &'n str) -> Cow<'n, str> {
        match (self, name.strip_prefix("model.")) {
            (Self::Wrapped, _) => Cow::Owned(format!("{WRAPPED}{name}")),
            (Self::Inside, Some(rest)) => Cow::Owned(format!("model.{WRAPPED}{rest}")),
            (Self::Plain, _) | (Self::Inside, None) => Cow::Borrowed(name),
        }
    }

    /// The name in MLX's files of what the architecture calls `name`: there is no third layout among them.
    pub(super) fn written(self, name: &str) -> String {
        match self {
            Self::Plain => name.to_owned(),
            Self::Wrapped | Self::Inside => format!("{WRAPPED}{name}"),
        }
    }

    /// What the architecture calls the tensor that files call `name`; `None` if it is another model's.
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
