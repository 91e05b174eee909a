//! maskwright
pub mod calib;
pub mod eval;
pub mod export;
pub mod fsio;
pub mod gpu;
pub mod kernel;
pub mod mask;
pub mod model;
pub mod nn;
