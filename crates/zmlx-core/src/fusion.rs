//! Which fused ops a model uses. This is a value, so the stock and the fused path run in one process on the same
//! weights.

use std::fmt;
use std::str::FromStr;

/// How the gate and up projections of chosen experts are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExpertFusion {
    /// Two gathers, SiLU, product: four ops.
    Stock,
    /// One gather over the concatenated gate and up bank, then SwiGLU. It needs no new kernel, so it is the baseline
    /// that a fused kernel must beat.
    Concat,
    /// [`Backend::gather_qmm_swiglu`](crate::Backend::gather_qmm_swiglu).
    Fused,
}

/// Defines [`Fusion`] from one line per switch, `Part: field`. Each line makes a field, a part of [`FusionPart`], and
/// its name in the text of a fusion, which is the field's name.
macro_rules! switches {
    ($( $(#[doc = $doc:literal])* $part:ident: $field:ident, )*) => {
        /// The set of fused ops in use. Each can be switched alone; [`Fusion::STOCK`] uses none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct Fusion {
            /// Gate, up and SwiGLU of the chosen experts.
            pub experts: ExpertFusion,
            $( $(#[doc = $doc])* pub $field: Switch, )*
            /// What a softmax router chooses from. Other routers ignore it.
            pub softmax_route: SoftmaxRoute,
        }

        /// A part of a [`Fusion`] that can be used or not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FusionPart {
            /// Gate, up and SwiGLU of the chosen experts.
            Experts,
            $( $(#[doc = $doc])* $part, )*
        }

        impl FusionPart {
            /// The parts that are a [`Switch`].
            const SWITCHES: &[Self] = &[$(Self::$part),*];

            /// The name in a fusion's text and in reports, which is the field's name.
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Experts => "experts",
                    $( Self::$part => stringify!($field), )*
                }
            }
        }

        impl Fusion {
            const fn uniform(experts: ExpertFusion, switch: Switch) -> Self {
                Self { experts, $( $field: switch, )* softmax_route: SoftmaxRoute::Probabilities }
            }

            /// This fusion, with that part taken from `other`.
            #[must_use]
            pub const fn with(mut self, part: FusionPart, other: &Self) -> Self {
                match part {
                    FusionPart::Experts => self.experts = other.experts,
                    $( FusionPart::$part => self.$field = other.$field, )*
                }
                self
            }
        }
    };
}

switches! {
    /// Down projection and weighted sum: `gather_qmm_combine`.
    Combine: combine,
    /// Gate, up and SwiGLU of dense MLPs and shared experts: `qmm_swiglu`.
    DenseSwiglu: dense_swiglu,
    /// Residual sum and norm: `add_rms_norm`.
    AddRmsNorm: add_rms_norm,
    /// The router in one op: `route_softmax_top_k`, `route_noaux_tc`.
    Route: route,
    /// Query, key and value projections in one product over concatenated rows, the norms and ropes of queries and keys:
    /// `norm_rope`; and with latent attention, attention itself: `norm_rope_mla`.
    Qkv: qkv,
}

/// What a softmax router chooses its experts from. Softmax keeps the order, so the chosen set is the same except for
/// ties: different logits may round to equal probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SoftmaxRoute {
    /// From the probabilities, as the models define it.
    Probabilities,
    /// From the logits; the weights are their probabilities. This is an experiment, always composed of plain ops.
    Logits,
    /// From the logits; the weights are the softmax of the chosen logits alone. This equals the renormalised
    /// probabilities, so it is allowed only where those are asked for. It is an experiment, always composed of plain
    /// ops.
    ChosenLogits,
}

impl SoftmaxRoute {
    /// The name in a fusion's text, `route=NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probabilities => "probabilities",
            Self::Logits => "logits",
            Self::ChosenLogits => "chosen_logits",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Probabilities, Self::Logits, Self::ChosenLogits].into_iter().find(|r| r.name() == name)
    }
}

/// Whether a fused op is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switch {
    /// The composition of plain ops.
    Off,
    /// The fused op.
    On,
}

impl Switch {
    /// True for [`Switch::On`].
    pub const fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

impl Fusion {
    /// No fused op: the sequence of a stock engine.
    pub const STOCK: Self = Self::uniform(ExpertFusion::Stock, Switch::Off);
    /// As [`Fusion::STOCK`], with gate and up concatenated into one product.
    pub const CONCAT: Self = Self::uniform(ExpertFusion::Concat, Switch::Off);
    /// Every fused op.
    pub const FUSED: Self = Self::uniform(ExpertFusion::Fused, Switch::On);
}

impl fmt::Display for Fusion {
    /// The preset of the experts, then each op that differs from that preset.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, preset) = match self.experts {
            ExpertFusion::Stock => ("stock", Self::STOCK),
            ExpertFusion::Concat => ("concat", Self::CONCAT),
            ExpertFusion::Fused => ("fused", Self::FUSED),
        };
        f.write_str(name)?;
        for &part in FusionPart::SWITCHES {
            if preset.with(part, self) != preset {
                let is_on = Self::STOCK.with(part, self) != Self::STOCK;
                write!(f, ",{}{}", if is_on { '+' } else { '-' }, part.name())?;
            }
        }
        if self.softmax_route != preset.softmax_route {
            write!(f, ",route={}", self.softmax_route.name())?;
        }
        Ok(())
    }
}

/// A text that names no [`Fusion`].
#[derive(Debug, thiserror::Error)]
#[error(
    "unknown fusion {got:?}: expected stock, concat or fused, then +OP or -OP separated by commas, \
     OP one of {}; or route=probabilities, logits or chosen_logits",
    FusionPart::SWITCHES.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ")
)]
pub struct ParseFusionError {
    got: String,
}

impl FromStr for Fusion {
    type Err = ParseFusionError;

    /// Reads what [`Display`](fmt::Display) writes: `fused`, `stock,+combine`, `fused,-route,-qkv`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseFusionError { got: text.to_owned() };
        let mut parts = text.split(',');
        let mut fusion = match parts.next() {
            Some("stock") => Self::STOCK,
            Some("concat") => Self::CONCAT,
            Some("fused") => Self::FUSED,
            _ => return Err(unknown()),
        };
        for part in parts {
            if let Some(name) = part.strip_prefix("route=") {
                fusion.softmax_route = SoftmaxRoute::from_name(name).ok_or_else(unknown)?;
                continue;
            }
            let (like, op) = match (part.strip_prefix('+'), part.strip_prefix('-')) {
                (Some(op), _) => (Self::FUSED, op),
                (_, Some(op)) => (Self::STOCK, op),
                _ => return Err(unknown()),
            };
            let part = FusionPart::SWITCHES.iter().find(|part| part.name() == op).ok_or_else(unknown)?;
            fusion = fusion.with(*part, &like);
        }
        Ok(fusion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        for text in
            ["stock", "concat", "fused", "fused,-combine", "stock,+route,+qkv", "fused,-route,route=logits"]
        {
            let fusion: Fusion = text.parse().unwrap();
            assert_eq!(fusion.to_string(), text);
        }
        for part in FusionPart::SWITCHES {
            for text in [format!("stock,+{}", part.name()), format!("fused,-{}", part.name())] {
                assert_eq!(text.parse::<Fusion>().unwrap().to_string(), text);
            }
        }
        for text in ["", "Fused", "fused,combine", "fused,-x", "fused,-experts", "fused,", "fused,route=x"] {
            let error = text.parse::<Fusion>().unwrap_err().to_string();
            assert!(error.contains("combine, dense_swiglu, add_rms_norm, route, qkv;"), "{error}");
        }
    }
}
