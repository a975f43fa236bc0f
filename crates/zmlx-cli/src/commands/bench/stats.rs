//! What a number of samples comes to.

/// Samples in ascending order.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    sorted: Vec<f64>,
}

impl Stats {
    pub(super) fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    pub(super) fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// The standard deviation of a sample; 0 of a single one.
    pub(super) fn std_dev(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.sorted.iter().map(|x| (x - mean).powi(2)).sum();
        (squares / (self.sorted.len() as f64 - 1.0).max(1.0)).sqrt()
    }

    pub(super) fn median(&self) -> f64 {
        let n = self.sorted.len();
        let at = |i: usize| self.sorted.get(i).copied().unwrap_or(f64::NAN);
        (at(n.saturating_sub(1) / 2) + at(n / 2)) / 2.0
    }

    /// The smallest sample that at least `percent` of a hundred samples do not exceed.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The standard deviation as a part of the mean.
    pub(super) fn spread(&self) -> f64 {
        self.std_dev() / self.mean()
    }
}

#[cfg(test)]
mod tests {
    use super::Stats;

    #[test]
    fn known_samples() {
        let stats = Stats::of([4.0, 2.0, 6.0]);
        assert_eq!((stats.mean(), stats.median(), stats.std_dev()), (4.0, 4.0, 2.0));
        assert_eq!(stats.spread(), 0.5);
        assert_eq!(Stats::of([1.0, 2.0]).median(), 1.5);
        let one = Stats::of([7.0]);
        assert_eq!((one.mean(), one.std_dev(), one.percentile(99.0)), (7.0, 0.0, 7.0));
        let hundred = Stats::of((1..=100).map(f64::from));
        assert_eq!([50.0, 95.0, 99.0].map(|p| hundred.percentile(p)), [50.0, 95.0, 99.0]);
    }
}
