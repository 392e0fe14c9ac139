//! `strftime` in UTC, with the C library's English names.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Year, month (1–12), day (1–31) of a day counted from 1 January 1970.
/// Counts years from March, so that a leap day is a year's last.
fn civil(days: i64) -> (i64, usize, usize) {
    let shifted = days + 719_468; // days from 1 March of year 0
    let era = shifted.div_euclid(146_097); // 400 years
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as usize, day as usize)
}

/// Formats a time; directives that it does not know stay as they are.
pub(super) fn utc(format: &str, time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    };
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let weekday = (days + 4).rem_euclid(7) as usize;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let before_month = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month - 1];
    let year_day = before_month + day + usize::from(leap && month > 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // Writing to a string cannot fail.
        let _ = match chars.next() {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year.rem_euclid(100)),
            Some('m') => write!(out, "{month:02}"),
            Some('B') => write!(out, "{}", MONTHS[month - 1]),
            Some('b' | 'h') => write!(out, "{}", &MONTHS[month - 1][..3]),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('j') => write!(out, "{year_day:03}"),
            Some('A') => write!(out, "{}", DAYS[weekday]),
            Some('a') => write!(out, "{}", &DAYS[weekday][..3]),
            Some('w') => write!(out, "{weekday}"),
            Some('u') => write!(out, "{}", (weekday + 6) % 7 + 1),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{hour12:02}"),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('f') => write!(out, "000000"),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('R') => write!(out, "{hour:02}:{minute:02}"),
            Some('D') => write!(out, "{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('z') => write!(out, "+0000"),
            Some('Z') => write!(out, "UTC"),
            Some('s') => write!(out, "{seconds}"),
            // The same without padding, a GNU extension.
            Some('-') => match chars.next() {
                Some('d' | 'e') => write!(out, "{day}"),
                Some('m') => write!(out, "{month}"),
                Some('H') => write!(out, "{hour}"),
                Some('I') => write!(out, "{hour12}"),
                Some('M') => write!(out, "{minute}"),
                Some('S') => write!(out, "{second}"),
                Some('j') => write!(out, "{year_day}"),
                Some(other) => write!(out, "%-{other}"),
                None => write!(out, "%-"),
            },
            Some('%') => write!(out, "%"),
            Some('n') => writeln!(out),
            Some('t') => write!(out, "\t"),
            Some(other) => write!(out, "%{other}"),
            None => write!(out, "%"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_python_writes_them() {
        // Right: `datetime.fromtimestamp(t, UTC).strftime(…)` of CPython 3.11.
        let format = "%Y-%m-%d %B %b %A %a %j %H:%M:%S %I %p %y %w %u";
        for (seconds, python) in [
            (
                0,
                "1970-01-01 January Jan Thursday Thu 001 00:00:00 12 AM 70 4 4",
            ),
            (
                951_782_400,
                "2000-02-29 February Feb Tuesday Tue 060 00:00:00 12 AM 00 2 2",
            ),
            (
                1_735_689_599,
                "2024-12-31 December Dec Tuesday Tue 366 23:59:59 11 PM 24 2 2",
            ),
            (
                4_107_542_400,
                "2100-03-01 March Mar Monday Mon 060 00:00:00 12 AM 00 1 1",
            ),
        ] {
            assert_eq!(
                utc(format, UNIX_EPOCH + Duration::from_secs(seconds)),
                python
            );
        }
    }
}
