//! The page: data, style, script and charting library in one HTML file.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{ReportError, Run, Versus};
use crate::fsio;

const STYLE: &str = include_str!("../../assets/report/page.css");
const SCRIPT: &str = include_str!("../../assets/report/page.js");
const CHART_STYLE: &str = include_str!("../../assets/uplot/uPlot.min.css");
const CHART_SCRIPT: &str = include_str!("../../assets/uplot/uPlot.iife.min.js");
const CHART_LICENCE: &str = include_str!("../../assets/uplot/LICENSE");

/// What a page shows.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// "maskwright 0.1.0".
    generator: &'static str,
    /// The runs, in the order given.
    pub runs: Vec<Run>,
    /// Where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versus: Option<Versus>,
    /// Where the page asks for newer data: its state so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) live: Option<String>,
}

impl Page {
    /// A page of runs. Those of the same name get a number.
    pub fn new(mut runs: Vec<Run>) -> Self {
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for (i, run) in runs.iter_mut().enumerate() {
            let same = |j: &usize| names[*j] == names[i];
            if (0..names.len()).filter(same).count() > 1 {
                run.name = format!("{} ({})", names[i], (0..=i).filter(same).count());
            }
        }
        let versus = (runs.len() > 1).then(|| Versus::of(&runs));
        Self { generator: concat!("maskwright ", env!("CARGO_PKG_VERSION")), runs, versus, live: None }
    }

    /// A page of the runs in `folders`.
    ///
    /// # Errors
    /// Those of [`Run::read`].
    pub fn read(folders: &[impl AsRef<Path>]) -> Result<Self, ReportError> {
        let runs = folders.iter().map(|folder| Run::read(folder.as_ref(), None)).collect::<Result<_, _>>()?;
        Ok(Self::new(runs))
    }

    /// The data as JSON.
    pub fn json(&self) -> String {
        // Nothing in it has a key that is no text, so this does not fail.
        serde_json::to_value(self).unwrap_or(Value::Null).to_string()
    }

    /// The page. Nothing in it is loaded from elsewhere, and its policy forbids that.
    pub fn html(&self) -> String {
        let names: Vec<String> = self.runs.iter().map(|run| escaped(&run.name)).collect();
        let title = format!("{} - maskwright", names.join(", "));
        // Inside a script only `<` could end it.
        let data = self.json().replace('<', "\\u003c");
        let connect = if self.live.is_some() { "'self'" } else { "'none'" };
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'; img-src data:; connect-src {connect}\">\n\
             <link rel=\"icon\" href=\"data:,\">\n\
             <title>{title}</title>\n<style>\n{CHART_STYLE}\n{STYLE}</style>\n</head>\n<body>\n\
             <main id=\"page\"><noscript><p>This page draws its tables and charts with JavaScript; the data is in it as \
             JSON.</p></noscript></main>\n\
             <script type=\"application/json\" id=\"data\">{data}</script>\n\
             <!-- uPlot, its licence:\n{CHART_LICENCE}\n-->\n\
             <script>{CHART_SCRIPT}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
        )
    }

    /// Writes the page to a file, whole or not at all.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        Ok(fsio::write_bytes(path, self.html().as_bytes())?)
    }
}

/// Text as HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
