//! What the end-to-end tests share. The tests themselves are the `[[test]]` targets beside this file.
