"""The pages, a file each; `app.web.main` lists them."""
