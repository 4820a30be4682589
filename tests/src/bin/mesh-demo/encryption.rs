//! Mutual TLS: what goes to the other node goes through tunnels, and whoever proves nothing is refused.
//!
//! The rest of the demo shows the kernel path, so the mesh says `off` before this step and after it.

use mesh_tests::{
    Mesh,
    programs::{curl, curl_many, url},
    resources::mesh_mtls,
};

use crate::shop::{self, SHOP, Shop};
use crate::table::Claims;

/// Requests to the cart, whose only server is on the other node.
const REQUESTS: usize = 40;

/// What the shopper and a stranger get where mTLS is strict.
pub fn encryption(mesh: &Mesh, shop: &Shop, claims: &mut Claims) {
    println!(
        "\n5. Encryption (mTLS strict: the shopper on node1 asks the cart on node2; so does a pod outside the mesh)"
    );
    let stranger = mesh.pod(1, "stranger").outside().up();
    let Some((cart, _)) = shop.web.get("cart-a") else { return claims.check(false, "there is a cart") };
    let direct = url(cart.ip(), 8080, "/cart/stranger");
    let before = curl(&stranger, &["-m", "2", &direct]).status;
    mesh.apply(&mesh_mtls("strict"));
    let tunnels = || {
        let shown = shop.shopper.run("ss", &["-Htn", "state", "established", "dport = :15008"]);
        shown.unwrap_or_default().lines().count()
    };
    shop::settle("the cart answers through a tunnel", || {
        let reply = curl(&shop.shopper, &["-m", "2", "-H", "Host: shop", &url(SHOP, 80, "/cart/")]);
        reply.status == 200 && tunnels() > 0
    });
    shop::settle("the stranger is refused", || curl(&stranger, &["-m", "2", &direct]).status == 0);
    let replies = curl_many(&shop.shopper, &url(SHOP, 80, "/cart/sealed"), REQUESTS);
    let answered = replies.iter().filter(|reply| reply.status == 200).count();
    let logged = shop.hits("/cart/sealed", REQUESTS as u64).values().sum::<u64>();
    println!("   ss in the shopper's namespace: {} connections to port 15008 of the cart", tunnels());
    claims.check(
        answered == REQUESTS && logged == REQUESTS as u64,
        &format!("all {REQUESTS} requests were answered"),
    );
    claims.check(tunnels() > 0, "they went through a tunnel of mutual TLS");
    claims.check(before == 200, "without strict mTLS the stranger reached the cart directly");
    claims.check(curl(&stranger, &["-m", "2", &direct]).status == 0, "with it the stranger is refused");
    mesh.apply(&mesh_mtls("off"));
    shop::settle("nothing is encrypted again", || curl(&stranger, &["-m", "2", &direct]).status == 200);
}
