//! The highest rate that a server bears, by bisection.

/// Halves a range of rates, in their logarithms, with each answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Bisection {
    low: f64,
    high: f64,
    left: usize,
    borne: bool,
    broken: bool,
}

impl Bisection {
    /// Between these rates, with so many probes.
    pub fn new(low: f64, high: f64, probes: usize) -> Bisection {
        Bisection {
            low,
            high,
            left: probes,
            borne: false,
            broken: false,
        }
    }

    /// The rate to probe next; `None` when all probes are used.
    pub fn next_rate(&self) -> Option<f64> {
        (self.left > 0).then(|| (self.low * self.high).sqrt())
    }

    /// Takes the answer: whether the server bears the rate last probed.
    pub fn tell(&mut self, bears: bool) {
        let Some(rate) = self.next_rate() else {
            return;
        };
        self.left -= 1;
        if bears {
            (self.low, self.borne) = (rate, true);
        } else {
            (self.high, self.broken) = (rate, true);
        }
    }

    /// The highest rate that was borne; `None` if none was.
    pub fn capacity(&self) -> Option<f64> {
        self.borne.then_some(self.low)
    }

    /// Whether some rate was not borne: if none was, the capacity is beyond the range.
    pub fn bounded(&self) -> bool {
        self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(low: f64, high: f64, capacity: f64) -> (Bisection, usize) {
        let (mut bisection, mut probes) = (Bisection::new(low, high, 6), 0);
        while let Some(rate) = bisection.next_rate() {
            bisection.tell(rate <= capacity);
            probes += 1;
        }
        (bisection, probes)
    }

    #[test]
    fn a_monotone_limit_is_found_within_a_64th_of_the_range() {
        for capacity in [1.1, 3.7, 9.0, 15.0] {
            let (bisection, probes) = search(1.0, 16.0, capacity);
            assert_eq!(probes, 6);
            let step = 16f64.powf(1.0 / 64.0);
            let found = bisection.capacity().unwrap();
            assert!(
                found <= capacity && capacity < found * step * 1.001,
                "{found}"
            );
            assert!(bisection.bounded());
        }
        assert_eq!(search(1.0, 16.0, 0.5).0.capacity(), None);
        let (beyond, _) = search(1.0, 16.0, 100.0);
        assert!(beyond.capacity().unwrap() > 15.0 && !beyond.bounded());
    }
}
