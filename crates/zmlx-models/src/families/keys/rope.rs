//! Reads the rotary position embeddings of configs.

use std::f64::consts::TAU;

use serde_json::{Value, json};
use zmlx_kernels::{Rope, RopeFrequencies, RopePairing};

use crate::Result;
use crate::fields::{Fields, short};

/// The kinds that a config may name.
const KINDS: &str = "default, linear, dynamic, yarn, llama3, longrope or proportional";

/// The settings of rope. They are at the top level and in `rope_scaling`, or (as transformers 5 writes them) all in
/// `rope_parameters`.
pub(in crate::families) struct RopeKeys<'f, 'a> {
    f: &'f Fields<'a>,
    parameters: Option<Fields<'a>>,
    scaling: Option<Fields<'a>>,
}

/// The dimensions to rotate.
#[derive(Clone, Copy, Debug)]
pub(in crate::families) struct RopeOf {
    /// The number of leading dimensions of each head.
    pub(in crate::families) dims: usize,
    /// The base of the frequencies.
    pub(in crate::families) theta: f64,
    /// Which dimensions form a pair.
    pub(in crate::families) pairing: RopePairing,
}

impl RopeOf {
    /// Rope without scaling.
    pub(in crate::families) fn plain(self) -> Rope {
        Rope::plain(self.dims, self.theta as f32, self.pairing)
    }

    /// The frequencies of all pairs of the head. Only the first `part` of the pairs is rotated.
    pub(in crate::families) fn proportional(self, part: f64) -> Rope {
        let n_turning = (self.dims as f64 * part.min(1.0)) as usize / 2;
        self.given(self.powers().enumerate().map(|(i, e)| if i < n_turning { e } else { 0.0 }), 1.0)
    }

    /// `theta^(-2i / dims)` for every pair.
    fn powers(self) -> impl Iterator<Item = f64> {
        (0..self.dims / 2).map(move |i| self.theta.powf(-((2 * i) as f64) / self.dims as f64))
    }

    fn given(self, frequencies: impl Iterator<Item = f64>, scale: f64) -> Rope {
        let frequencies = RopeFrequencies::Given(frequencies.collect());
        Rope { dims: self.dims, frequencies, scale: scale as f32, pairing: self.pairing }
    }
}

impl<'f, 'a> RopeKeys<'f, 'a> {
    pub(in crate::families) fn new(f: &'f Fields<'a>) -> Result<Self> {
        Ok(Self { f, parameters: f.object("rope_parameters")?, scaling: f.object("rope_scaling")? })
    }

    /// The settings for layers of one type, which have their own object within `rope_parameters`.
    pub(in crate::families) fn of_layers(f: &'f Fields<'a>, layer_type: &str) -> Result<Self> {
        let all = f.object("rope_parameters")?;
        let parameters = all.map(|all| all.object(layer_type)).transpose()?.flatten();
        Ok(Self { f, parameters, scaling: None })
    }

    /// Reads `rope_theta`, which is required if there is no default.
    pub(in crate::families) fn theta(&self, default: Option<f64>) -> Result<f64> {
        const KEY: &str = "rope_theta";
        let inner = self.parameters.as_ref().filter(|p| p.get(KEY).is_some());
        match (self.f.get(KEY), inner, default) {
            (None, Some(parameters), _) => parameters.positive(KEY),
            (None, None, Some(default)) => Ok(default),
            _ => self.f.positive(KEY),
        }
    }

    /// Reads `partial_rotary_factor`: the part of each head that is rotated.
    pub(in crate::families) fn partial_rotary_factor(&self) -> Result<Option<f64>> {
        const KEY: &str = "partial_rotary_factor";
        let places = [Some(self.f), self.parameters.as_ref()];
        let found = places.into_iter().flatten().find(|f| f.get(KEY).is_some());
        found.map(|f| f.positive(KEY)).transpose()
    }

    /// Refuses a part of each head, for families that always rotate whole heads.
    pub(in crate::families) fn whole_heads(&self) -> Result<()> {
        match self.partial_rotary_factor()? {
            Some(part) if part != 1.0 => {
                Err(self.f.unsupported("partial_rotary_factor", "1", part.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Whether there are settings beyond those at the top level.
    pub(in crate::families) fn has_settings(&self) -> bool {
        self.settings().is_some()
    }

    /// True if only a part of each head's pairs is rotated and the others stay unchanged.
    pub(in crate::families) fn is_proportional(&self) -> Result<bool> {
        let kind = self.settings().map(kind).transpose()?;
        Ok(kind.is_some_and(|(_, kind)| kind == "proportional"))
    }

    /// The settings of the scaling, for display; `None` without scaling.
    pub(in crate::families) fn scaling(&self) -> Option<Value> {
        let settings = self.settings().filter(|s| kind(s).is_ok_and(|(_, kind)| kind != "default"))?;
        Some(json!(settings.iter().collect::<std::collections::BTreeMap<_, _>>()))
    }

    /// True if `rope_scaling` or `rope_parameters` asks for a kind with scaling.
    pub(in crate::families) fn is_scaled(&self) -> Result<bool> {
        let kind = self.settings().map(kind).transpose()?;
        Ok(kind.is_some_and(|(_, kind)| kind != "default"))
    }

    /// The factor of the attention scores: `(0.1 · mscale_all_dim · ln(factor) + 1)²`, or 1 without `mscale_all_dim`.
    pub(in crate::families) fn score_factor(&self) -> Result<f64> {
        let Some(settings) = self.settings() else { return Ok(1.0) };
        let all_dim = settings.non_negative_or("mscale_all_dim", 0.0)?;
        if all_dim == 0.0 {
            return Ok(1.0);
        }
        Ok(magnitude(all_dim, settings.positive("factor")?).powi(2))
    }

    /// The rope of `of`, scaled as the config says.
    ///
    /// | kind | frequency of pair i, e = theta^(-2i/dims) | scale |
    /// |---|---|---|
    /// | default, mrope | e | 1 |
    /// | dynamic | e: its base changes only for sequences longer than `max_position_embeddings`, which are refused | 1 |
    /// | linear | e / factor | 1 |
    /// | yarn, deepseek_yarn | from e (fast pairs) to e / factor (slow ones) | m(mscale) / m(mscale_all_dim) |
    /// | llama3 | e of short waves, e / factor of long ones, between them a mixture | 1 |
    /// | proportional | e / factor of the first part of a head's pairs, 0 of the others | 1 |
    /// | longrope | e / long_factor\[i\] | √(1 + ln(max/original) / ln(original)) if max > original |
    ///
    /// **Source** mlx-lm `rope_utils.initialize_rope`.
    ///
    /// # Errors
    /// If the kind is unknown, or a setting is missing or invalid.
    pub(in crate::families) fn rope(&self, of: RopeOf) -> Result<Rope> {
        let Some(s) = self.settings() else { return Ok(of.plain()) };
        let (key, kind) = kind(s)?;
        let rope = match kind {
            "default" | "mrope" | "dynamic" => of.plain(),
            "linear" => {
                let position_scale = s.positive("factor")?.recip() as f32;
                let frequencies = RopeFrequencies::Powers { theta: of.theta as f32, position_scale };
                Rope { frequencies, ..of.plain() }
            }
            "yarn" | "deepseek_yarn" => yarn(s, of)?,
            "llama3" => llama3(s, of)?,
            "proportional" => proportional(s, of)?,
            "longrope" => self.longrope(s, of)?,
            other => {
                return Err(s.unsupported(key, KINDS, other));
            }
        };
        let frequencies = rope.frequencies();
        if frequencies.iter().all(|f| f.is_finite()) && rope.scale.is_finite() {
            return Ok(rope);
        }
        let got = format!("{frequencies:?}, times {}", rope.scale);
        Err(s.wrong(key, "settings that give finite frequencies and factors", got))
    }

    fn settings(&self) -> Option<&Fields<'a>> {
        self.scaling.as_ref().or(self.parameters.as_ref())
    }

    fn longrope(&self, s: &Fields<'_>, of: RopeOf) -> Result<Rope> {
        const KEY: &str = "long_factor";
        let (factors, n_pairs) = (s.positives(KEY)?, of.dims / 2);
        s.ensure(factors.len() == n_pairs, KEY, format!("{n_pairs} numbers"), factors.len())?;
        let original = s.positive("original_max_position_embeddings")?;
        let stretch = self.f.positive("max_position_embeddings")? / original;
        let scale = if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 };
        Ok(of.given(of.powers().zip(factors).map(|(e, factor)| e / factor), scale))
    }
}

/// The key that names the kind, and the kind.
fn kind<'k>(settings: &Fields<'k>) -> Result<(&'static str, &'k str)> {
    let key = settings.named(&["type", "rope_type"]);
    let Some(kind) = settings.get(key) else { return Ok((key, "default")) };
    Ok((key, kind.as_str().ok_or_else(|| settings.wrong(key, "a string", short(kind)))?))
}

fn yarn(s: &Fields<'_>, of: RopeOf) -> Result<Rope> {
    let factor = s.positive("factor")?;
    let original = s.positive_or("original_max_position_embeddings", 4096.0)?;
    let (fast, slow) = (s.positive_or("beta_fast", 32.0)?, s.positive_or("beta_slow", 1.0)?);
    // The pair, as a real number, that makes this many turns over the original context.
    let pair_of = |turns: f64| of.dims as f64 * (original / (turns * TAU)).ln() / (2.0 * of.theta.ln());
    let low = pair_of(fast).floor().max(0.0);
    let high = pair_of(slow).ceil().min((of.dims - 1) as f64);
    let high = if high == low { high + 0.001 } else { high };
    let frequencies = of.powers().enumerate().map(move |(i, e)| {
        let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        e * (1.0 - slowed) + e / factor * slowed
    });
    let scale = magnitude(s.non_negative_or("mscale", 1.0)?, factor)
        / magnitude(s.non_negative_or("mscale_all_dim", 0.0)?, factor);
    Ok(of.given(frequencies, scale))
}

fn llama3(s: &Fields<'_>, of: RopeOf) -> Result<Rope> {
    let factor = s.positive("factor")?;
    let original = s.positive_or("original_max_position_embeddings", 8192.0)?;
    let (low, high) = (s.positive_or("low_freq_factor", 1.0)?, s.positive_or("high_freq_factor", 4.0)?);
    let frequencies = of.powers().map(move |e| {
        // The number of waves in the original context.
        let n_waves = original * e / TAU;
        if n_waves < low {
            e / factor
        } else if n_waves > high {
            e
        } else {
            let kept = (n_waves - low) / (high - low);
            e * ((1.0 - kept) / factor + kept)
        }
    });
    Ok(of.given(frequencies, 1.0))
}

/// Frequencies for the pairs of the whole head. Only the first part of the pairs is rotated.
fn proportional(s: &Fields<'_>, of: RopeOf) -> Result<Rope> {
    let (factor, part) = (s.positive_or("factor", 1.0)?, s.positive_or("partial_rotary_factor", 1.0)?);
    let rope = of.proportional(part);
    let frequencies = rope.frequencies().into_iter().map(|e| e / factor).collect();
    Ok(Rope { frequencies: RopeFrequencies::Given(frequencies), ..rope })
}

/// `0.1 · mscale · ln(factor) + 1`, or 1 if the factor does not stretch the context.
fn magnitude(mscale: f64, factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 }
}
