//! The fields about rope, which are at the top level, in `rope_scaling` or in `rope_parameters`.

use std::f64::consts::TAU;

use serde::Deserialize;
use serde_json::Value;

use crate::ops::{RopeLayout, rope_frequencies};
use crate::plan::RopePlan;
use crate::{Error, Result};

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct RopeConfig {
    rope_theta: Option<f64>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: Option<f64>,
}

impl RopeConfig {
    /// The settings of one type of layers, which are under its name in `rope_parameters`; `default` if there are none.
    pub(super) fn of_layers(&self, layer_type: &str, default: &Value) -> Self {
        let own = self.rope_parameters.as_ref().and_then(|all| all.get(layer_type));
        let own = own.filter(|own| own.is_object()).unwrap_or(default);
        Self { rope_theta: None, rope_parameters: Some(own.clone()), rope_scaling: None, ..self.clone() }
    }

    /// The same settings, with this base if the config has none.
    pub(super) fn or_theta(&self, theta: f64) -> Self {
        let has_own = self.theta().is_ok();
        Self { rope_theta: if has_own { self.rope_theta } else { Some(theta) }, ..self.clone() }
    }

    /// The rope that the config describes, on `dims` elements.
    ///
    /// # Errors
    /// Numbers that are missing or make no sense, or an unknown kind.
    pub(super) fn plan(&self, dims: usize, layout: RopeLayout) -> Result<RopePlan> {
        let theta = self.theta()?;
        let plain = rope_frequencies(dims, theta);
        let each = |f: &dyn Fn(usize, f64) -> f64| plain.iter().enumerate().map(|(i, &e)| f(i, e)).collect();
        let (frequencies, scale): (Vec<f64>, f64) = match self.kind() {
            // The base of the dynamic kind changes only after max_position_embeddings.
            "default" | "mrope" | "dynamic" => (plain, 1.0),
            "linear" => {
                let factor = self.required("factor")?;
                (each(&|_, e| e / factor), 1.0)
            }
            "yarn" | "deepseek_yarn" => {
                let factor = self.required("factor")?;
                let original = self.number("original_max_position_embeddings").unwrap_or(4096.0);
                // The pair that makes this number of turns over the original context.
                let pair = |turns: f64| dims as f64 * (original / (TAU * turns)).ln() / (2.0 * theta.ln());
                let low = pair(self.number("beta_fast").unwrap_or(32.0)).floor().max(0.0);
                let high = pair(self.number("beta_slow").unwrap_or(1.0)).ceil().min(dims as f64 - 1.0);
                let width = if high == low { 0.001 } else { high - low };
                let slowed = |i: usize| ((i as f64 - low) / width).clamp(0.0, 1.0);
                let scale = magnitude(self.number("mscale").unwrap_or(1.0), factor)
                    / magnitude(self.number("mscale_all_dim").unwrap_or(0.0), factor);
                (each(&|i, e| e * (1.0 - slowed(i)) + e / factor * slowed(i)), scale)
            }
            "proportional" => {
                let factor = self.number("factor").unwrap_or(1.0);
                let part = self.number("partial_rotary_factor").unwrap_or(1.0);
                let n_turning = (dims as f64 * part) as usize / 2;
                (each(&|i, e| if i < n_turning { e / factor } else { 0.0 }), 1.0)
            }
            "llama3" => {
                let factor = self.required("factor")?;
                let original = self.number("original_max_position_embeddings").unwrap_or(8192.0);
                let low = self.number("low_freq_factor").unwrap_or(1.0);
                let high = self.number("high_freq_factor").unwrap_or(4.0);
                let of = |e: f64| {
                    let wavelength = TAU / e;
                    if wavelength > original / low {
                        e / factor
                    } else if wavelength < original / high {
                        e
                    } else {
                        let s = (original / wavelength - low) / (high - low);
                        e * ((1.0 - s) / factor + s)
                    }
                };
                (each(&|_, e| of(e)), 1.0)
            }
            "longrope" => {
                let factors = self.field("long_factor").and_then(Value::as_array);
                let factors: Vec<f64> = factors.into_iter().flatten().filter_map(Value::as_f64).collect();
                if factors.len() != plain.len() {
                    return Err(bad("long_factor", "one number per pair is needed"));
                }
                let original = self.required("original_max_position_embeddings")?;
                let stretch = self.max_position_embeddings.unwrap_or(original) / original;
                let scale = if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 };
                (each(&|i, e| e / factors[i]), scale)
            }
            other => return Err(Error::Unsupported { what: format!("rope scaling {other:?}") }),
        };
        Ok(RopePlan { frequencies, scale, layout })
    }

    /// The plain rope, whatever scaling the config has.
    ///
    /// # Errors
    /// A missing base.
    pub(super) fn unscaled(&self, dims: usize, layout: RopeLayout) -> Result<RopePlan> {
        Ok(RopePlan { frequencies: rope_frequencies(dims, self.theta()?), scale: 1.0, layout })
    }

    /// The factor of the scores if the context was stretched: `(0.1·mscale_all_dim·ln(factor) + 1)²`.
    pub(super) fn score_factor(&self) -> f64 {
        match (self.number("mscale_all_dim"), self.number("factor")) {
            (Some(all_dim), Some(factor)) => magnitude(all_dim, factor).powi(2),
            _ => 1.0,
        }
    }

    /// The part of a head that is rotated.
    ///
    /// # Errors
    /// If neither place has it.
    pub(super) fn partial_rotary_factor(&self) -> Result<f64> {
        let inner = || self.rope_parameters.as_ref()?.get("partial_rotary_factor")?.as_f64();
        self.partial_rotary_factor.or_else(inner).ok_or_else(|| bad("partial_rotary_factor", "missing"))
    }

    fn theta(&self) -> Result<f64> {
        let inner = || self.rope_parameters.as_ref()?.get("rope_theta")?.as_f64();
        let theta = self.rope_theta.or_else(inner).filter(|theta| *theta > 0.0);
        theta.ok_or_else(|| bad("rope_theta", "missing or not positive"))
    }

    fn kind(&self) -> &str {
        let kind = self.field("type").or(self.field("rope_type"));
        kind.and_then(Value::as_str).unwrap_or("default")
    }

    /// A field of `rope_scaling`, or of `rope_parameters` if there is no such entry.
    fn field(&self, name: &str) -> Option<&Value> {
        let scaling = self.rope_scaling.as_ref().filter(|entry| entry.is_object());
        scaling.or(self.rope_parameters.as_ref())?.get(name).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.field(name).and_then(Value::as_f64)
    }

    fn required(&self, name: &str) -> Result<f64> {
        let number = self.number(name).filter(|n| *n > 0.0);
        number.ok_or_else(|| bad(&format!("rope_scaling.{name}"), "missing or not positive"))
    }
}

fn magnitude(mscale: f64, factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 }
}

fn bad(field: &str, why: &str) -> Error {
    Error::Config { field: field.to_owned(), why: why.to_owned() }
}
