// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients that come and go.

use system_tests::backend::Backend;

#[test]
fn a_client_that_left_does_not_stand_in_the_way_of_the_next() {
    let backend = Backend::start();
    for _ in 0..100 {
        // Closed before the next one connects, so whatever is still to be cleared away, nobody is attached.
        drop(backend.attach());
    }
}
