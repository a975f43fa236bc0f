//! Hooks into a backend's ops. They are off while speed is measured. In separate passes they count or time the ops.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use zmlx_kernels::{Backend, Hooks, Op, Result, Stage};

/// What the hooks do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Do nothing.
    #[default]
    Off,
    /// Count ops. Compositions count as the ops that they consist of, as in `docs/LAUNCHES.md`.
    Count,
    /// Time each op, including the wait for its result.
    Time,
}

/// An op that ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ran {
    pub(super) op: &'static str,
    pub(super) time: Duration,
}

/// Records the ops that run.
#[derive(Debug, Default)]
pub(super) struct Probe {
    mode: Cell<Mode>,
    ran: RefCell<Vec<Ran>>,
}

impl Probe {
    /// Starts again in this mode.
    pub(super) fn set(&self, mode: Mode) {
        self.mode.set(mode);
        self.ran.borrow_mut().clear();
    }

    /// Returns what ran since the last call.
    pub(super) fn take(&self) -> Vec<Ran> {
        self.ran.take()
    }
}

impl<B: Backend> Hooks<B> for Probe {
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        if self.mode.get() == Mode::Off {
            return run();
        }
        let started = Instant::now();
        let result = run()?;
        self.ran.borrow_mut().push(Ran { op, time: started.elapsed() });
        Ok(result)
    }

    fn waits(&self) -> bool {
        self.mode.get() == Mode::Time
    }

    fn takes_apart(&self) -> bool {
        self.mode.get() == Mode::Count
    }
}

/// A part of a token's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Router,
    GateUp,
    Down,
    Attention,
    Head,
    /// Embedding, norms, and residual sums.
    Other,
    /// Time outside of ops: between them, and while waiting for the device.
    Sync,
}

impl Phase {
    pub(super) const ALL: [Self; 7] =
        [Self::Router, Self::GateUp, Self::Down, Self::Attention, Self::Head, Self::Other, Self::Sync];

    /// The name in tables and capsules.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::GateUp => "gate_up",
            Self::Down => "down",
            Self::Attention => "attention",
            Self::Head => "head",
            Self::Other => "other",
            Self::Sync => "sync",
        }
    }
}

/// The place in the model between two taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Embedding,
    Attention,
    FeedForward,
    Head,
}

impl Part {
    /// The part that ends at the tap `name`; `None` if no part ends there.
    pub(super) fn ending_at(name: &str) -> Option<Self> {
        match name {
            "embed" => Some(Self::Embedding),
            "logits" => Some(Self::Head),
            _ if name.ends_with(".attn") => Some(Self::Attention),
            _ if name.ends_with(".out") => Some(Self::FeedForward),
            _ => None,
        }
    }
}

/// The phase of each op of a part.
pub(super) fn phases(part: Part, ran: &[Ran]) -> Vec<Phase> {
    match part {
        Part::Embedding => vec![Phase::Other; ran.len()],
        Part::Head => ran.iter().map(|_| Phase::Head).collect(),
        Part::Attention => {
            // The norm before it belongs to the previous part. The norm after it, with the residual sum, belongs to the
            // block.
            let last_product = ran.iter().rposition(|r| r.op == Op::LINEAR.name).unwrap_or(0);
            let first = usize::from(ran.first().is_some_and(|r| r.op == Op::RMS_NORM.name));
            (0..ran.len())
                .map(|i| if (first..=last_product).contains(&i) { Phase::Attention } else { Phase::Other })
                .collect()
        }
        Part::FeedForward => feed_forward(ran),
    }
}

fn feed_forward(ran: &[Ran]) -> Vec<Phase> {
    // The router of a stock engine has the name of its op with the prefix "stock_".
    let stage =
        |r: &Ran| Op::named(r.op.strip_prefix("stock_").unwrap_or(r.op)).map_or(Stage::Other, |op| op.stage);
    let stages: Vec<Stage> = ran.iter().map(stage).collect();
    let mut is_routing = stages.contains(&Stage::Route);
    // True between the activation and the down projection.
    let mut is_activated = false;
    let phase = |stage: Stage| match stage {
        Stage::Gather | Stage::Product if is_activated => {
            is_activated = false;
            Phase::Down
        }
        Stage::Gather => {
            is_routing = false;
            Phase::GateUp
        }
        Stage::Product if is_routing => Phase::Router,
        Stage::Product => Phase::GateUp,
        Stage::Activation => {
            (is_routing, is_activated) = (false, true);
            Phase::GateUp
        }
        Stage::Down => {
            is_activated = false;
            Phase::Down
        }
        _ if is_routing => Phase::Router,
        _ => Phase::Other,
    };
    stages.into_iter().map(phase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(part: Part, ops: &[&'static str]) -> String {
        let ran: Vec<_> = ops.iter().map(|&op| Ran { op, time: Duration::ZERO }).collect();
        phases(part, &ran).into_iter().map(Phase::name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ops_have_their_phases() {
        let stock = [
            "linear",
            "stock_route_noaux_tc",
            "gather_linear",
            "gather_linear",
            "gated",
            "gather_linear",
            "weighted_sum",
            "linear",
            "linear",
            "gated",
            "linear",
            "add",
            "add",
            "rms_norm",
        ];
        assert_eq!(
            of(Part::FeedForward, &stock),
            "router router gate_up gate_up gate_up down down gate_up gate_up gate_up down other other other"
        );
        // A router composed of plain ops.
        let composed = ["linear", "softmax", "top_k", "take_last", "div_by_sum", "gather_qmm_swiglu"];
        assert_eq!(of(Part::FeedForward, &composed), "router router router router router gate_up");
        let fused =
            ["linear", "route_softmax_top_k", "gather_qmm_swiglu", "gather_qmm_combine", "add_rms_norm"];
        assert_eq!(of(Part::FeedForward, &fused), "router router gate_up down other");
        assert_eq!(of(Part::FeedForward, &["qmm_swiglu", "linear", "add_rms_norm"]), "gate_up down other");
        let attention = ["rms_norm", "linear", "rms_norm", "rope", "attention", "linear", "add", "rms_norm"];
        assert_eq!(
            of(Part::Attention, &attention),
            "other attention attention attention attention attention other other"
        );
        assert_eq!(of(Part::Head, &["linear"]), "head");
    }
}
