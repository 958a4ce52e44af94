//! Medians of alternating pairs, and the two lines that each figure is reported by.

use std::fmt::Write;

/// Which way a figure gets better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    Higher,
    /// Times and sizes.
    Lower,
}

/// A figure: what was measured, beside whom, in which unit.
#[derive(Debug, Clone, Copy)]
pub struct Figure<'a> {
    /// Its name in issue and report, without spaces.
    pub name: &'a str,
    /// Who was measured beside us, with the version, without spaces.
    pub peer: &'a str,
    /// Unit of both sides' values, without spaces.
    pub unit: &'a str,
    /// Which way it gets better.
    pub better: Better,
}

/// A figure that gets better as it grows.
pub fn higher<'a>(name: &'a str, peer: &'a str, unit: &'a str) -> Figure<'a> {
    Figure { name, peer, unit, better: Better::Higher }
}

/// The middle of the values; of an even number, the mean of the two in the middle.
///
/// # Panics
/// There are no values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The report of a figure from its pairs (ours, peer's): a `#` line with the spread, then one
/// `BENCH` line with the medians of both sides and of the pairs' ratios. Empty without pairs.
pub fn render(figure: Figure<'_>, pairs: &[(f64, f64)]) -> String {
    let mut text = String::new();
    if pairs.is_empty() {
        return text;
    }
    let Figure { name, peer, unit, better } = figure;
    let column = |pick: fn(&(f64, f64)) -> f64| pairs.iter().map(pick).collect::<Vec<_>>();
    let (ours, theirs) = (column(|p| p.0), column(|p| p.1));
    let ratios = column(|p| p.0 / p.1);
    let spread = |values: &[f64]| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{low:.2}..{high:.2}")
    };
    let better = match better {
        Better::Higher => "higher",
        Better::Lower => "lower",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "# {name}: ours {} {unit}, {peer} {} {unit}, ratio {} over {} pairs",
        spread(&ours),
        spread(&theirs),
        spread(&ratios),
        pairs.len()
    );
    let _ = writeln!(
        text,
        "BENCH name={name} ours={:.2} peer={:.2} peer_name={peer} ratio={:.3} unit={unit} \
         better={better}",
        median(ours),
        median(theirs),
        median(ratios)
    );
    text
}

/// Prints [`render`]'s lines.
pub fn report(figure: Figure<'_>, pairs: &[(f64, f64)]) {
    print!("{}", render(figure, pairs));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs_ratios_and_not_of_the_columns() {
        let figure = Figure { name: "n", peer: "p-1", unit: "iops", better: Better::Higher };
        let text = render(figure, &[(10.0, 1.0), (2.0, 2.0), (3.0, 6.0)]);
        assert_eq!(
            text,
            "# n: ours 2.00..10.00 iops, p-1 1.00..6.00 iops, ratio 0.50..10.00 over 3 pairs\n\
             BENCH name=n ours=3.00 peer=2.00 peer_name=p-1 ratio=1.000 unit=iops better=higher\n"
        );
        assert_eq!(render(figure, &[]), "");
    }
}
