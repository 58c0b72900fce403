// Every picture of a page opens in its full size: panels of a figure are too small to read on a phone.
document.addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll(".bd-article img:not(a img):not(.sd-card img)")) {
    const link = document.createElement("a");
    link.href = picture.src;
    link.title = "Open in full size";
    picture.replaceWith(link);
    link.append(picture);
  }
});
