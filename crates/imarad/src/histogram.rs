//! How long questions waited for their answers: counts in buckets whose bounds double, for `imara status`.

use std::time::Duration;

/// The bound of the first bucket, in microseconds.
const FIRST: u64 = 16;

/// Buckets with a bound: 16 µs, 32 µs, … 16.8 s. What took longer is in one more.
const BOUNDED: usize = 21;

/// Such counts. Adding one costs a few instructions and no memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: [u64; BOUNDED + 1],
    sum: Duration,
}

/// One bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Bucket {
    /// The longest time that belongs here, in microseconds; absent in the last bucket.
    #[serde(rename = "le_microseconds")]
    pub(crate) bound: Option<u64>,
    /// How many are longer than the bound of the bucket before, and no longer than this one.
    pub(crate) count: u64,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn add(&mut self, time: Duration) {
        let rounded_up = time.saturating_add(Duration::from_nanos(999));
        let microseconds = u64::try_from(rounded_up.as_micros()).unwrap_or(u64::MAX);
        // The number of bits beyond those of the first bound.
        let beyond = u64::BITS - (microseconds.saturating_sub(1) / FIRST).leading_zeros();
        let place = usize::try_from(beyond).unwrap_or(BOUNDED).min(BOUNDED);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum += time;
    }

    /// All of them together.
    pub(crate) const fn sum(&self) -> Duration {
        self.sum
    }

    /// In ascending order.
    pub(crate) fn buckets(&self) -> Vec<Bucket> {
        let bounds = (0..BOUNDED).map(|doubled| Some(FIRST << doubled)).chain([None]);
        bounds.zip(self.counts).map(|(bound, count)| Bucket { bound, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        for (nanoseconds, bound) in [
            (0, Some(16)),
            (1, Some(16)),
            (16_000, Some(16)),
            (16_001, Some(32)),
            (32_000, Some(32)),
            (32_001, Some(64)),
            (1_000_000, Some(1024)),
            (1_024_000, Some(1024)),
            (1_024_001, Some(2048)),
            (16_777_216_000, Some(16_777_216)),
            (16_777_216_001, None),
            (u64::MAX, None),
        ] {
            let mut histogram = Histogram::default();
            let time = Duration::from_nanos(nanoseconds);
            histogram.add(time);
            let filled: Vec<_> = histogram.buckets().into_iter().filter(|bucket| bucket.count > 0).collect();
            assert_eq!((filled, histogram.sum()), (vec![Bucket { bound, count: 1 }], time), "{nanoseconds}");
        }
        let bounds: Vec<_> = Histogram::default().buckets().iter().map(|bucket| bucket.bound).collect();
        assert!(bounds.len() == 22 && bounds[..21].is_sorted() && bounds[21].is_none(), "{bounds:?}");
    }
}
