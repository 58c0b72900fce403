// Search finds pages for users first, then the API, then pages for developers.
var Scorer = {
  score: ([page, title, anchor, description, score]) => {
    if (page.startsWith("developer/") || page.startsWith("api/developer") || page === "changelog") return score - 60;
    if (page.startsWith("api/")) return score - 25;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 25,
  partialTitle: 12,
  term: 5,
  partialTerm: 2,
};

// What a result quotes comes from the page's text, not from what surrounds it.
document.addEventListener("DOMContentLoaded", () => {
  const asText = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const article = new DOMParser().parseFromString(html, "text/html").querySelector("article");
    return asText(article ? `<div role="main">${article.innerHTML}</div>` : html, anchor);
  };
});
