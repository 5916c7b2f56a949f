//! The last lines of each run, for programs: `name=value`.

use std::{collections::BTreeMap, fmt};

/// Figures by name, printed in the order of their names.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<&'static str, String>);

impl Figures {
    /// Sets a figure, printed with so many decimals.
    pub(crate) fn set(&mut self, name: &'static str, value: f64, decimals: usize) {
        self.0.insert(name, format!("{value:.decimals$}"));
    }

    /// Sets a figure to the median over the rounds.
    pub(crate) fn median<R>(&mut self, name: &'static str, decimals: usize, rounds: &[R], of: impl Fn(&R) -> f64) {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
        self.set(name, median, decimals);
    }

    /// Sets a figure to the highest of the rounds.
    pub(crate) fn highest<R>(&mut self, name: &'static str, decimals: usize, rounds: &[R], of: impl Fn(&R) -> f64) {
        self.set(name, rounds.iter().map(of).fold(0.0, f64::max), decimals);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.0 {
            writeln!(f, "{name}={value}")?;
        }
        Ok(())
    }
}
