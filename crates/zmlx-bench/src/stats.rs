//! Statistics of repeated measurements.

/// The `q` quantile of the values, interpolated between neighbours; `None` if there are no values.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted.get(at.floor() as usize)?, sorted.get(at.ceil() as usize)?);
    Some(low + (high - low) * at.fract())
}

/// The median; `None` if there are no values.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Mean and sample standard deviation (divided by n − 1); `None` if there are no values.
pub fn mean_sd(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    Some((mean, (squares / (n - 1.0).max(1.0)).sqrt()))
}

/// The smallest and the largest value; `None` if there are no values.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    Some((quantile(values, 0.0)?, quantile(values, 1.0)?))
}

/// An estimate of a ratio, with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The geometric mean.
    pub estimate: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Estimates the ratio from repeated ratios. `None` for fewer than two values, because they do not show the spread.
///
/// The logarithms are assumed to be normally distributed (Student's t).
pub fn ratio_interval(ratios: &[f64]) -> Option<Interval> {
    let (mean, error, freedom) = log_mean(ratios)?;
    Some(interval(mean, error, freedom))
}

/// The ratio of the values `b` to the values `a`, which were measured independently (Welch's t). `None` if either has
/// fewer than two values.
pub fn quotient_interval(a: &[f64], b: &[f64]) -> Option<Interval> {
    let ((mean_a, error_a, freedom_a), (mean_b, error_b, freedom_b)) = (log_mean(a)?, log_mean(b)?);
    let (square_a, square_b) = (error_a * error_a, error_b * error_b);
    let weights = square_a * square_a / freedom_a + square_b * square_b / freedom_b;
    // Without any spread the number of degrees does not matter.
    let freedom = if weights > 0.0 { (square_a + square_b).powi(2) / weights } else { 1.0 };
    Some(interval(mean_b - mean_a, (square_a + square_b).sqrt(), freedom))
}

/// Mean of the logarithms, its standard error, and the degrees of freedom.
fn log_mean(values: &[f64]) -> Option<(f64, f64, f64)> {
    if values.len() < 2 {
        return None;
    }
    let logs: Vec<f64> = values.iter().map(|v| v.ln()).collect();
    let (mean, sd) = mean_sd(&logs)?;
    let n = logs.len() as f64;
    Some((mean, sd / n.sqrt(), n - 1.0))
}

fn interval(mean: f64, error: f64, freedom: f64) -> Interval {
    let half = if error > 0.0 { error * t_95(freedom) } else { error };
    Interval { estimate: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() }
}

/// The 97.5th percentile of Student's t. The middle 95 % are between minus and plus this value.
fn t_95(freedom: f64) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
        2.045, 2.042,
    ];
    let whole = freedom.max(1.0) as usize;
    // Beyond the table this is accurate to 0.001.
    TABLE.get(whole - 1).copied().unwrap_or(1.96 + 2.42 / freedom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_few_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.25), Some(1.25));
        assert_eq!(range(&[2.0, -1.0, 0.0]), Some((-1.0, 2.0)));
        assert_eq!(mean_sd(&[1.0, 3.0]), Some((2.0, 2f64.sqrt())));
        assert_eq!(mean_sd(&[5.0]), Some((5.0, 0.0)));
    }

    #[test]
    fn intervals() {
        assert_eq!((ratio_interval(&[]), ratio_interval(&[2.0])), (None, None));
        let alike = ratio_interval(&[2.0, 2.0, 2.0]).unwrap();
        assert!([alike.estimate, alike.low, alike.high].iter().all(|x| (x - 2.0).abs() < 1e-12));
        // The logarithms are -0.1, 0 and 0.1: the standard error is 0.1/√3, times 4.303.
        let spread = ratio_interval(&[(-0.1f64).exp(), 1.0, 0.1f64.exp()]).unwrap();
        assert!(
            (spread.estimate - 1.0).abs() < 1e-12 && (spread.high.ln() - 0.2484).abs() < 1e-4,
            "{spread:?}"
        );
        assert!((spread.low * spread.high - 1.0).abs() < 1e-12);
        // With equal spreads, Welch's degrees of freedom are those of both: 4.
        let a = [(-0.1f64).exp(), 1.0, 0.1f64.exp()];
        let b = a.map(|x| 2.0 * x);
        let quotient = quotient_interval(&a, &b).unwrap();
        assert!((quotient.estimate - 2.0).abs() < 1e-12, "{quotient:?}");
        assert!(
            ((quotient.high / 2.0).ln() - 2.776 * (2.0 * 0.01 / 3.0f64).sqrt()).abs() < 1e-4,
            "{quotient:?}"
        );
        assert!(quotient_interval(&a, &[1.0]).is_none());
        assert!(ratio_interval(&[f64::NAN, 1.0]).unwrap().low.is_nan());
        assert!((t_95(60.0) - 2.000).abs() < 2e-3 && t_95(0.3) == 12.706);
    }
}
