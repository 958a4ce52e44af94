//! What every benchmark of Croft shares: statistics, the report, and programs that are started,
//! pinned to a CPU and ended again.

#![forbid(unsafe_code)]

pub mod process;
pub mod report;

/// Who is measured first in a round, and who then: who begins changes from round to round, so that
/// what one side leaves warm or worn for the other favours nobody.
pub fn order<T, const N: usize>(round: usize, mut sides: [T; N]) -> [T; N] {
    sides.rotate_left(round % N);
    sides
}

/// One side of a row: measures itself once.
pub type Side<'a> = &'a mut dyn FnMut() -> anyhow::Result<f64>;

/// Measures all sides `rounds` times, in turn; the values of each side.
///
/// # Errors
/// A side could not be measured.
pub fn alternate<const N: usize>(
    rounds: usize,
    sides: [Side<'_>; N],
) -> anyhow::Result<[Vec<f64>; N]> {
    let mut values: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(rounds));
    for round in 0..rounds {
        for side in order(round, std::array::from_fn::<_, N, _>(|side| side)) {
            values[side].push(sides[side]()?);
        }
    }
    Ok(values)
}

/// The pairs of two sides' values.
pub fn zip(ours: &[f64], theirs: &[f64]) -> Vec<(f64, f64)> {
    ours.iter().copied().zip(theirs.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sides_are_there_in_every_round_and_begin_in_turn() {
        let rounds: Vec<_> = (0..3).map(|round| order(round, ["ours", "peer"])).collect();
        assert_eq!(rounds, [["ours", "peer"], ["peer", "ours"], ["ours", "peer"]]);
        assert_eq!(order(4, [0, 1, 2]), [1, 2, 0]);
    }
}
