//! Every weight of an architecture: the names under which files store it, its width, and how much of it a token reads.

use std::collections::BTreeMap;

use super::{
    Architecture, ConvSpec, ExpertsSpec, FeedForwardSpec, HeadSpec, LayerExtras, LinearSpec, MatrixSpec,
    MixerSpec, MlaSpec, MlpSpec, MoeSpec, QuerySpec, RouterSpec, VectorSpec,
};

/// Weights that files store together.
#[derive(Clone, Debug)]
pub(crate) enum Module {
    /// A matrix.
    Matrix(MatrixSpec),
    /// A vector.
    Vector(VectorSpec),
    /// The taps of a convolution.
    Conv(ConvSpec),
    /// The projections of all experts, and their biases.
    Experts(ExpertsSpec),
    /// The projections into and out of the latents of latent attention: a matrix for each head.
    Heads(Box<MlaSpec>),
}

/// The part of the model that a weight belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The embedding table.
    Embedding,
    /// A norm of the residual stream.
    Norm,
    /// A mixer.
    Attention,
    /// A router.
    Router,
    /// The gate or up projection of an MLP or of experts.
    GateUp,
    /// The down projection of an MLP or of experts.
    Down,
    /// The head, which may be the embedding table.
    Head,
}

/// How much of a weight one decoded token reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPerToken {
    /// All of it.
    Whole,
    /// One row. The value is the number of rows.
    RowOf(usize),
    /// `top_k` of `n_experts` parts of a stack.
    Chosen {
        /// The number of experts that a token goes to.
        top_k: usize,
        /// The number of experts in the stack.
        n_experts: usize,
    },
}

/// The purpose of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// The part of the model.
    pub part: Part,
    /// The number of values of a row: the width of the input.
    pub n_in: usize,
    /// How much of the weight a token reads.
    pub read: ReadPerToken,
}

/// Every path (a tensor's name without `.weight`, `.scales` and similar endings) under which a file may store a weight
/// of a model, in any layout.
#[derive(Debug)]
pub struct WeightUses {
    by_path: BTreeMap<String, WeightUse>,
}

impl WeightUses {
    /// The purpose of the weight at `path`; `None` if the model does not use it.
    pub fn get(&self, path: &str) -> Option<WeightUse> {
        // Experts that are stored one by one share an entry, with a star in place of their number.
        let of_expert = || {
            let (mixture, expert) = path.split_once(".experts.")?;
            let (_, projection) = expert.split_once('.')?;
            self.by_path.get(&format!("{mixture}.experts.*.{projection}"))
        };
        self.by_path.get(path).or_else(of_expert).copied()
    }
}

impl Architecture {
    /// The purpose of each weight.
    pub fn weight_uses(&self) -> WeightUses {
        WeightUses { by_path: self.walk().by_path }
    }

    /// Every weight once, in the order of the computation: the weights that a file of the model contains.
    pub(crate) fn modules(&self) -> Vec<Module> {
        let mut modules = self.walk().modules;
        // The walk begins with the embedding, the head if it has its own weight, and the norm before it.
        let n_first = if matches!(self.head, HeadSpec::Own(_)) { 3 } else { 2 };
        let mut first: Vec<_> = modules.drain(..n_first.min(modules.len())).collect();
        let behind = first.split_off(1.min(first.len()));
        first.into_iter().chain(modules).chain(behind.into_iter().rev()).collect()
    }

    fn walk(&self) -> Uses {
        let mut uses = Uses::default();
        match &self.head {
            HeadSpec::Tied(_) => uses.matrix(&self.embed, Part::Head),
            HeadSpec::Own(head) => {
                let read = ReadPerToken::RowOf(self.vocab_size);
                uses.matrix(&self.embed, Part::Embedding);
                uses.add(&self.embed.path, WeightUse { part: Part::Embedding, n_in: self.embed.n_in, read });
                uses.matrix(head, Part::Head);
            }
        }
        uses.vector(&self.norm, Part::Norm);
        for layer in &self.layers {
            uses.vector(&layer.input_norm, Part::Norm);
            uses.vector(&layer.post_norm, Part::Norm);
            uses.mixer(&layer.mixer);
            match &layer.feed_forward {
                FeedForwardSpec::Dense(mlp) => uses.mlp(mlp),
                FeedForwardSpec::Moe(moe) => uses.moe(moe),
                FeedForwardSpec::Beside(beside) => {
                    uses.mlp(&beside.mlp);
                    uses.moe(&beside.moe);
                    for norm in [&beside.mlp_norm, &beside.moe_input_norm, &beside.moe_norm] {
                        uses.vector(norm, Part::Norm);
                    }
                }
            }
            let LayerExtras { mixer_norm, feed_forward_norm, per_layer_input, factor } = &layer.extras;
            for vector in [mixer_norm, feed_forward_norm, factor].into_iter().flatten() {
                uses.vector(vector, Part::Norm);
            }
            if let Some(input) = per_layer_input {
                uses.matrix(&input.gate, Part::GateUp);
                uses.matrix(&input.projection, Part::Down);
                uses.vector(&input.norm, Part::Norm);
            }
        }
        if let Some(inputs) = &self.extras.per_layer_inputs {
            let (read, n_in) = (ReadPerToken::RowOf(inputs.table.n_out), inputs.table.n_in);
            uses.matrix(&inputs.table, Part::Embedding);
            uses.add(&inputs.table.path, WeightUse { part: Part::Embedding, n_in, read });
            uses.matrix(&inputs.projection, Part::GateUp);
            uses.vector(&inputs.norm, Part::Norm);
        }
        uses
    }

    /// The largest weight: its path and dimensions, as `n_mats`, `n_out`, `n_in`.
    pub(crate) fn largest_weight(&self) -> Option<(String, [usize; 3])> {
        let mut uses = Uses::default();
        uses.matrix(&self.embed, Part::Embedding);
        for layer in &self.layers {
            uses.mixer(&layer.mixer);
            match &layer.feed_forward {
                FeedForwardSpec::Dense(mlp) => uses.mlp(mlp),
                FeedForwardSpec::Moe(moe) => {
                    uses.size_of_experts(&moe.experts);
                    moe.shared.iter().for_each(|mlp| uses.mlp(mlp));
                }
                FeedForwardSpec::Beside(beside) => {
                    uses.size_of_experts(&beside.moe.experts);
                    uses.mlp(&beside.mlp);
                }
            }
        }
        if let Some(inputs) = &self.extras.per_layer_inputs {
            uses.matrix(&inputs.table, Part::Embedding);
            uses.matrix(&inputs.projection, Part::GateUp);
        }
        uses.largest
    }
}

#[derive(Default)]
struct Uses {
    by_path: BTreeMap<String, WeightUse>,
    largest: Option<(String, [usize; 3])>,
    modules: Vec<Module>,
}

impl Uses {
    fn add(&mut self, path: &str, weight: WeightUse) {
        self.by_path.insert(path.to_owned(), weight);
    }

    fn size(&mut self, path: &str, dims: [usize; 3]) {
        let n = |dims: &[usize; 3]| dims.iter().map(|&d| d as f64).product::<f64>();
        if self.largest.as_ref().is_none_or(|(_, known)| n(&dims) > n(known)) {
            self.largest = Some((path.to_owned(), dims));
        }
    }

    fn size_of_experts(&mut self, e: &ExpertsSpec) {
        self.size(&e.path, [e.n_experts, e.inter, e.hidden]);
    }

    fn moe(&mut self, moe: &MoeSpec) {
        self.matrix(moe.router.gate(), Part::Router);
        match &moe.router {
            RouterSpec::NoauxTc { bias, .. } => bias.iter().for_each(|bias| self.vector(bias, Part::Router)),
            RouterSpec::SoftmaxOfChosen(of) => {
                let norm = of.norm.as_ref().map(|norm| &norm.weight);
                for vector in [of.gate.bias.as_ref(), norm, of.factors.as_ref()].into_iter().flatten() {
                    self.vector(vector, Part::Router);
                }
            }
            RouterSpec::SoftmaxTopK { .. } => {}
        }
        self.experts(&moe.experts, moe.router.top_k());
        moe.shared.iter().for_each(|mlp| self.mlp(mlp));
        moe.shared_gate.iter().for_each(|gate| self.matrix(gate, Part::Router));
    }

    fn matrix(&mut self, matrix: &MatrixSpec, part: Part) {
        self.add(&matrix.path, WeightUse { part, n_in: matrix.n_in, read: ReadPerToken::Whole });
        self.size(&matrix.path, [1, matrix.n_out, matrix.n_in]);
        self.modules.push(Module::Matrix(matrix.clone()));
    }

    fn vector(&mut self, vector: &VectorSpec, part: Part) {
        let path = vector.name.strip_suffix(".weight").unwrap_or(&vector.name);
        self.add(path, WeightUse { part, n_in: vector.len, read: ReadPerToken::Whole });
        self.modules.push(Module::Vector(vector.clone()));
    }

    fn linear(&mut self, linear: &LinearSpec, part: Part) {
        self.matrix(&linear.matrix, part);
        linear.bias.iter().for_each(|bias| self.vector(bias, part));
    }

    fn mlp(&mut self, mlp: &MlpSpec) {
        self.matrix(&mlp.gate, Part::GateUp);
        self.matrix(&mlp.up, Part::GateUp);
        self.matrix(&mlp.down, Part::Down);
    }

    fn mixer(&mut self, mixer: &MixerSpec) {
        const PART: Part = Part::Attention;
        match mixer {
            MixerSpec::Attention(a) => {
                for linear in [Some(&a.q), Some(&a.k), a.v.as_ref(), Some(&a.o)].into_iter().flatten() {
                    self.linear(linear, PART);
                }
                for vector in [&a.q_norm, &a.k_norm, &a.sinks].into_iter().flatten() {
                    self.vector(vector, PART);
                }
            }
            MixerSpec::Shared(a) => {
                self.linear(&a.q, PART);
                self.linear(&a.o, PART);
                a.q_norm.iter().for_each(|norm| self.vector(norm, PART));
            }
            MixerSpec::Latent(a) => {
                match &a.q {
                    QuerySpec::Direct(q) => self.linear(q, PART),
                    QuerySpec::LowRank { a, norm, b } => {
                        self.linear(a, PART);
                        self.vector(norm, PART);
                        self.linear(b, PART);
                    }
                }
                self.linear(&a.kv_a, PART);
                self.vector(&a.kv_norm, PART);
                self.linear(&a.o, PART);
                let MlaSpec { path, n_heads, nope_dim, v_dim, rank, .. } = a;
                for (name, n_in) in [("embed_q", *nope_dim), ("unembed_out", *rank), ("kv_b_proj", *rank)] {
                    let weight = WeightUse { part: PART, n_in, read: ReadPerToken::Whole };
                    self.add(&format!("{path}.{name}"), weight);
                }
                self.size(&format!("{path}.kv_b_proj"), [*n_heads, nope_dim.saturating_add(*v_dim), *rank]);
                self.modules.push(Module::Heads(Box::new(a.clone())));
            }
            MixerSpec::Delta(a) => {
                a.projections().into_iter().for_each(|matrix| self.matrix(matrix, PART));
                self.conv(&a.conv, PART);
                [&a.a_log, &a.dt_bias, &a.norm].into_iter().for_each(|vector| self.vector(vector, PART));
                self.matrix(&a.out, PART);
            }
            MixerSpec::ShortConv(a) => {
                self.linear(&a.input, PART);
                self.conv(&a.conv, PART);
                self.linear(&a.out, PART);
            }
        }
    }

    fn conv(&mut self, conv: &ConvSpec, part: Part) {
        self.add(&conv.path, WeightUse { part, n_in: conv.kernel, read: ReadPerToken::Whole });
        self.modules.push(Module::Conv(conv.clone()));
        conv.bias.iter().for_each(|bias| self.vector(bias, part));
    }

    fn experts(&mut self, experts: &ExpertsSpec, top_k: usize) {
        let n_experts = experts.n_experts;
        let read = ReadPerToken::Chosen { top_k, n_experts };
        for (name, _, n_in) in experts.projections() {
            let part = if name == "down_proj" { Part::Down } else { Part::GateUp };
            let weight = WeightUse { part, n_in, read };
            if experts.is_biased {
                experts.biases(name).iter().for_each(|path| self.add(path, weight));
            }
            experts.stacked(name).iter().for_each(|path| self.add(path, weight));
            experts.one_by_one("*", name).iter().for_each(|path| self.add(path, weight));
        }
        let weight = WeightUse { part: Part::GateUp, n_in: experts.hidden, read };
        experts.gate_up().iter().for_each(|path| self.add(path, weight));
        self.modules.push(Module::Experts(experts.clone()));
    }
}
