//! Times, as people write them.

use std::time::Duration;

/// `20us`, `50ms`, `90s`, `10m`, `1h`, or seconds.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 6] = [
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let found = UNITS
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let (number, unit) = found.unwrap_or((text, 1.0));
    let wrong = || format!("{text:?} is not a time such as 50ms, 90s, 10m or 1h");
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let read = |text| parse(text).map(|time| time.as_micros());
        assert_eq!(read("20us"), Ok(20));
        assert_eq!(read("1.5ms"), Ok(1500));
        assert_eq!(read("90s"), Ok(90_000_000));
        assert_eq!(read("2"), Ok(2_000_000));
        assert_eq!(read("10m"), Ok(600_000_000));
        assert_eq!(read("1h"), Ok(3_600_000_000));
        for wrong in ["", "ms", "-1s", "1e400h", "soon"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
