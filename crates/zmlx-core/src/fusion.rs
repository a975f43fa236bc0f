//! Which fused ops a model uses: a value, so that baseline and patched run in one process on the same weights.

use std::fmt;
use std::str::FromStr;

/// How the gate and up projections of chosen experts are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExpertFusion {
    /// Two gathers, SiLU, product: four ops.
    Stock,
    /// One gather over the concatenated gate|up bank, then SwiGLU: the free baseline that a kernel must beat.
    Concat,
    /// [`Backend::gather_qmm_swiglu`](crate::Backend::gather_qmm_swiglu).
    Fused,
}

/// The set of fused ops in use. Each can be switched alone; [`Fusion::STOCK`] uses none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fusion {
    /// Gate, up and SwiGLU of the chosen experts.
    pub experts: ExpertFusion,
    /// Down projection and weighted sum: `gather_qmm_combine`.
    pub combine: Switch,
    /// Gate, up and SwiGLU of dense MLPs and shared experts: `qmm_swiglu`.
    pub dense_swiglu: Switch,
    /// Residual sum and norm: `add_rms_norm`.
    pub add_rms_norm: Switch,
    /// The router in one op: `route_softmax_top_k`, `route_noaux_tc`.
    pub route: Switch,
    /// Query, key and value projections in one product over concatenated rows.
    pub qkv: Switch,
    /// From what a softmax router chooses. Other routers do not ask.
    pub softmax_route: SoftmaxRoute,
}

/// From what a softmax router chooses its experts. Softmax keeps the order, so the chosen set is the same but for ties:
/// values that round to equal probabilities may differ as logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SoftmaxRoute {
    /// From the probabilities, as the models define it.
    Probabilities,
    /// From the logits; the weights are their probabilities. An experiment, always composed of plain ops.
    Logits,
    /// From the logits; the weights are the softmax of the chosen logits alone, which equals the renormalised
    /// probabilities, so only where those are asked for. An experiment, always composed of plain ops.
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

    const fn uniform(experts: ExpertFusion, switch: Switch) -> Self {
        Self {
            experts,
            combine: switch,
            dense_swiglu: switch,
            add_rms_norm: switch,
            route: switch,
            qkv: switch,
            softmax_route: SoftmaxRoute::Probabilities,
        }
    }

    fn switch_mut(&mut self, op: &str) -> Option<&mut Switch> {
        match op {
            "combine" => Some(&mut self.combine),
            "dense_swiglu" => Some(&mut self.dense_swiglu),
            "add_rms_norm" => Some(&mut self.add_rms_norm),
            "route" => Some(&mut self.route),
            "qkv" => Some(&mut self.qkv),
            _ => None,
        }
    }

    const fn switches(&self) -> [(&'static str, Switch); 5] {
        [
            ("combine", self.combine),
            ("dense_swiglu", self.dense_swiglu),
            ("add_rms_norm", self.add_rms_norm),
            ("route", self.route),
            ("qkv", self.qkv),
        ]
    }
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
        for ((op, is), (_, was)) in self.switches().into_iter().zip(preset.switches()) {
            if is != was {
                write!(f, ",{}{op}", if is.is_on() { '+' } else { '-' })?;
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
     OP one of combine, dense_swiglu, add_rms_norm, route, qkv; or route=probabilities, logits or chosen_logits"
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
            let (switch, op) = match (part.strip_prefix('+'), part.strip_prefix('-')) {
                (Some(op), _) => (Switch::On, op),
                (_, Some(op)) => (Switch::Off, op),
                _ => return Err(unknown()),
            };
            *fusion.switch_mut(op).ok_or_else(unknown)? = switch;
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
        for text in ["", "Fused", "fused,combine", "fused,-x", "fused,", "fused,route=x"] {
            assert!(text.parse::<Fusion>().is_err(), "{text}");
        }
    }
}
