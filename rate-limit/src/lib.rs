//! 429 rate limiting as a Tower layer, on governor in one process.
