//! What is told of several values of one thing.

/// The values in a few numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// The middle one; between the two middle ones where there are two.
    pub median: f64,
    /// 95 of 100 are not above it (nearest rank).
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of these values; `None` of none.
    pub fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let half = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
        Some(Summary { count: sorted.len(), min, median, p95: percentile(&sorted, 0.95), max })
    }

    /// How far the values lie apart, as a part of the median.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / self.median }
    }
}

/// The value that a part of all values does not exceed (nearest rank); of none it is 0.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_few_numbers() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.min, one.median, one.p95, one.max, one.spread()), (7.0, 7.0, 7.0, 7.0, 0.0));
        let even = Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.count, even.median, even.p95, even.spread()), (4, 2.5, 4.0, 1.2));
        let many: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Summary::of(&many).unwrap().p95, 95.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
        assert_eq!(percentile(&many, 0.0), 1.0);
    }
}
