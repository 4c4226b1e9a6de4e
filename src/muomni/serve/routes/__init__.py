"""The routes, a file each: `router(server)` gives those of it. The web framework is imported inside, so that the
package can be imported without the extra `serve`."""
