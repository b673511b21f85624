//! The Linux calls that Imara makes: one call, one function, one error; no decisions.
