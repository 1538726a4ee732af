//! Reading of a scrape.

/// A scrape's text.
#[derive(Debug)]
pub struct Scrape(pub String);

impl Scrape {
    /// The sum of all samples of a name whose labels contain all of these texts.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples(name).filter(|(with, _)| labels.iter().all(|l| with.contains(l))).map(|(_, value)| value).sum()
    }

    /// Each sample's label text and value.
    pub fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            Some((labels, value.trim().parse().ok()?))
        })
    }

    /// Whether the family is announced.
    pub fn has(&self, family: &str) -> bool {
        self.0.lines().any(|line| line.strip_prefix("# TYPE ").and_then(|l| l.split(' ').next()) == Some(family))
    }
}
