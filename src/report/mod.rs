//! One run or several as one HTML page that opens anywhere: the files of run folders read into [`Run`]s, put side by side, and
//! embedded as JSON in a page with its style, its script and the charting library. Also the same page over HTTP while a run goes on.
//!
//! What a run lacks, because it is older, unfinished or measured nothing, the page says; only a folder that is no run is an error.

mod curves;
mod error;
mod grid;
mod page;
mod run;
mod serve;
mod versus;

pub use curves::Curves;
pub use error::ReportError;
pub use grid::Cell;
pub use page::Page;
pub use run::{Given, Run};
pub use serve::{Live, Server};
pub use versus::{Point, Versus};
